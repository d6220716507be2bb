// What this browser has made, the newest first.

import { Card, SendingCard } from "./card.js";
import { draft, edit } from "./draft.js";
import { progress } from "./follow.js";
import { Glyph } from "./glyphs.js";
import { sending } from "./jobs.js";
import { made } from "./store.js";
import { html, useState } from "./vendor/preact.js";
import { useValue } from "./values.js";
import { examplesOf } from "./wording.js";

const PAGE = 48;

/** The newest ones, beside the form. */
export function Newest({ model, actions }) {
  const records = useValue(made);
  const under = useValue(sending);
  return html`
    <section class="newest" aria-labelledby="newest-title">
      <div class="section-head">
        <h2 id="newest-title">Newest pictures</h2>
        ${records.length > 0 && html`<a class="small" href="#gallery">Open the gallery</a>`}
      </div>
      ${records.length || under.length
        ? html`<${Cards} records=${records.slice(0, PAGE / 2)} sending=${under} actions=${actions} />`
        : html`<${Nothing} model=${model} />`}
    </section>
  `;
}

export function Gallery({ actions }) {
  const records = useValue(made);
  const [words, setWords] = useState("");
  const [most, setMost] = useState(PAGE);
  const found = records.filter(({ input, model }) => contains(`${input.prompt} ${model}`, words));
  return html`
    <section aria-labelledby="gallery-title">
      <div class="section-head">
        <h2 id="gallery-title">Gallery</h2>
        ${records.length > 0 &&
        html`
          <input
            type="search"
            class="search"
            aria-label="Search the prompts"
            placeholder="Search"
            value=${words}
            onInput=${({ target }) => setWords(target.value)}
          />
        `}
      </div>
      ${records.length === 0 && html`<p class="muted">Nothing yet. <a href="#make">Make a picture</a>, and it is kept here.</p>`}
      ${records.length > 0 && found.length === 0 && html`<p class="muted">No prompt has these words.</p>`}
      <${Cards} records=${found.slice(0, most)} sending=${[]} actions=${actions} />
      ${found.length > most &&
      html`<div class="more"><button type="button" onClick=${() => setMost(most + PAGE)}>Show older ones</button></div>`}
    </section>
  `;
}

function Cards({ records, sending: under, actions }) {
  const all = useValue(progress);
  return html`
    <ul class="cards">
      ${under.map((one) => html`<${SendingCard} key=${one.key} one=${one} />`)}
      ${records.map(
        (record) => html`<${Card} key=${record.id} record=${record} progress=${all.get(record.id)} actions=${actions} />`,
      )}
    </ul>
  `;
}

function Nothing({ model }) {
  const use = (prompt) => {
    edit({ prompt });
    document.getElementById("field-prompt").focus();
  };
  return html`
    <div class="nothing">
      <${Glyph} name="picture" />
      <p>Say what you want to see, and it appears here.</p>
      ${model &&
      html`
        <ul class="examples" aria-label="Examples">
          ${examplesOf(model).map(
            (text) => html`
              <li key=${text}>
                <button type="button" class="quiet" aria-pressed=${draft.now.prompt === text} onClick=${() => use(text)}>${text}</button>
              </li>
            `,
          )}
        </ul>
      `}
    </div>
  `;
}

function contains(text, words) {
  const lower = text.toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
}
