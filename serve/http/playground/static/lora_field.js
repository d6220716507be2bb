// Adapters (LoRAs) with their weights, and the words that their authors want in the prompt.

import { NumberInput } from "./fields.js";
import { Glyph } from "./glyphs.js";
import { html } from "./vendor/preact.js";

/** loras: [{id, scale}]; adapters: those that fit the model; onWord: adds a word to the prompt */
export function LoraField({ loras, adapters, prompt, error, onChange, onWord }) {
  const free = adapters.filter(({ id }) => !loras.some((one) => one.id === id));
  const add = ({ target }) => {
    if (target.value) onChange([...loras, { id: target.value, scale: 1 }]);
    target.value = "";
  };
  return html`
    <div class=${`field ${error ? "is-wrong" : ""}`}>
      <div class="field-head"><label for="field-loras">LoRAs</label></div>
      ${loras.map(
        (one) => html`
          <${Lora}
            key=${one.id}
            lora=${one}
            adapter=${adapters.find(({ id }) => id === one.id)}
            prompt=${prompt}
            onScale=${(scale) => onChange(loras.map((other) => (other === one ? { ...one, scale } : other)))}
            onRemove=${() => onChange(loras.filter((other) => other !== one))}
            onWord=${onWord}
          />
        `,
      )}
      <select
        id="field-loras"
        aria-describedby=${error ? "field-loras-error" : undefined}
        disabled=${!free.length}
        onChange=${add}
      >
        <option value="">${free.length ? "Add a LoRA…" : "All are added"}</option>
        ${free.map(({ id, title }) => html`<option key=${id} value=${id}>${title ? `${id} (${title})` : id}</option>`)}
      </select>
      ${error && html`<p id="field-loras-error" class="small problem">${error}</p>`}
    </div>
  `;
}

function Lora({ lora: { id, scale }, adapter, prompt, onScale, onRemove, onWord }) {
  const words = (adapter?.trigger_words ?? []).filter((word) => !prompt.includes(word));
  return html`
    <div class="lora" role="group" aria-label=${id}>
      <span class="lora-name" title=${id}>${id}</span>
      <input
        type="range"
        tabindex="-1"
        aria-hidden="true"
        min="0"
        max="2"
        step="0.05"
        value=${scale}
        onInput=${({ target }) => onScale(Number(target.value))}
      />
      <${NumberInput}
        aria-label=${`Weight of ${id}`}
        min="-100"
        max="100"
        step="0.05"
        value=${scale}
        onChange=${(number) => number !== null && onScale(number)}
      />
      <button type="button" class="quiet icon" aria-label=${`Remove ${id}`} onClick=${onRemove}>
        <${Glyph} name="close" />
      </button>
      ${!adapter && html`<p class="lora-note small problem">It does not fit this model, or is no longer there.</p>`}
      ${words.length > 0 &&
      html`
        <p class="lora-note small">
          <span class="muted">Words for the prompt:</span>
          ${words.map(
            (word) => html`<button type="button" class="word" key=${word} onClick=${() => onWord(word)}>${word}</button>`,
          )}
        </p>
      `}
    </div>
  `;
}
