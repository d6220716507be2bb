// The seed: a random one each time, one that is given, or one that is kept.

import { Glyph } from "./glyphs.js";
import { Field, NumberInput } from "./fields.js";
import { html } from "./vendor/preact.js";

const MAX_SEED = Number.MAX_SAFE_INTEGER; // the server's too

/** last: the seed of the newest picture, or null */
export function SeedField({ seed, isKept, last, error, onChange }) {
  const control = (attributes) => html`
    <div class="joined">
      <${NumberInput}
        ...${attributes}
        min="0"
        max=${MAX_SEED}
        placeholder="Random"
        value=${seed}
        onChange=${(number) => onChange({ seed: number })}
      />
      <button
        type="button"
        class="icon"
        aria-label="Use the last seed"
        title="Use the last seed"
        disabled=${last === null}
        onClick=${() => onChange({ seed: last })}
      >
        <${Glyph} name="again" />
      </button>
      <button
        type="button"
        class="icon"
        aria-label="Keep the seed"
        title=${isKept ? "The seed is kept for the next picture" : "Each picture gets another seed"}
        aria-pressed=${isKept}
        onClick=${() => onChange({ isSeedKept: !isKept })}
      >
        <${Glyph} name=${isKept ? "lock" : "unlock"} />
      </button>
    </div>
  `;
  return html`<${Field} name="seed" label="Seed" error=${error}>${control}<//>`;
}
