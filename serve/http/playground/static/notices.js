// Short messages: shown for a while at the page's edge, or only told to screen readers.

import { html } from "./vendor/preact.js";
import { Glyph } from "./glyphs.js";
import { useValue, Value } from "./values.js";

const SHOWN_MS = 8000;
const notices = new Value([]); // {key, text, isBad}
const announced = new Value("");
let count = 0;

export function say(text, { isBad = false } = {}) {
  const key = ++count;
  notices.now = [...notices.now, { key, text, isBad }];
  setTimeout(() => dismiss(key), SHOWN_MS);
}

/** Tells what is to be seen on the page anyway to those who do not see it. */
export function announce(text) {
  announced.now = `${text}${announced.now.startsWith(text) ? "\u00a0" : ""}`; // the same text again is read again
}

export function Notices() {
  const shown = useValue(notices);
  return html`
    <div class="unseen" role="status">${useValue(announced)}</div>
    <div class="notices" role="status" aria-label="Messages">
      ${shown.map(
        ({ key, text, isBad }) => html`
          <div key=${key} class=${`notice ${isBad ? "is-bad" : ""}`}>
            <span>${text}</span>
            <button type="button" class="quiet icon" aria-label="Dismiss" onClick=${() => dismiss(key)}>
              <${Glyph} name="close" />
            </button>
          </div>
        `,
      )}
    </div>
  `;
}

function dismiss(key) {
  notices.now = notices.now.filter((one) => one.key !== key);
}
