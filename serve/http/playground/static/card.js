// A card: what was asked for in one go, with its pictures or what is seen of them so far.

import { Glyph } from "./glyphs.js";
import { Picture } from "./picture.js";
import { isFinished } from "./store.js";
import { html, useLayoutEffect, useMemo, useRef } from "./vendor/preact.js";
import { stage } from "./wording.js";

const MAX_CELLS = 64; // what somebody mistyped is refused a moment later

/**
 * record: as in store.js; progress: as in follow.js, while it is under way
 * actions: {open(record, index), again(record), cancel(record), remove(record), gone(record)}; the same at each drawing
 */
export function Card({ record, progress, actions }) {
  return useMemo(() => drawn(record, progress, actions), [record, progress, actions]);
}

/** one: as in jobs.js, on its way to the server */
export function SendingCard({ one }) {
  return html`
    <li class="card" aria-label=${one.input.prompt}>
      <div class="frame is-waiting">
        <${Cells} count=${one.input.num_outputs} />
        <${UnderWay} text=${one.note ?? "Sending"} fraction=${0} onCancel=${one.stop} />
      </div>
      <${Caption} input=${one.input} />
    </li>
  `;
}

function drawn(record, progress, actions) {
  const { input, outputs } = record;
  const isUnderWay = !isFinished(record);
  const shown = outputs.length > 0 && record.status !== "gone";
  return html`
    <li class="card" aria-label=${input.prompt} data-id=${record.id} data-status=${record.status}>
      <div class=${`frame ${isUnderWay ? "is-waiting" : ""}`}>
        ${isUnderWay || shown
          ? html`<${Cells} count=${isUnderWay ? input.num_outputs : outputs.length} ...${{ record, progress, actions }} />`
          : html`<${Instead} record=${record} />`}
        ${isUnderWay &&
        html`<${UnderWay} text=${stage(progress)} fraction=${progress?.fraction ?? 0} onCancel=${() => actions.cancel(record)} />`}
      </div>
      <${Caption} input=${input}>
        <button type="button" class="quiet icon" aria-label="Use these settings again" title="Use these settings again" onClick=${() => actions.again(record)}>
          <${Glyph} name="again" />
        </button>
        <button type="button" class="quiet icon" aria-label="Delete" title="Delete" onClick=${() => actions.remove(record)}>
          <${Glyph} name="trash" />
        </button>
      <//>
    </li>
  `;
}

function Cells({ count: asked, record, progress, actions }) {
  const count = Math.min(asked, MAX_CELLS);
  const columns = Math.ceil(Math.sqrt(count));
  return html`
    <div class="cells" style=${{ "--columns": columns }}>
      ${Array.from({ length: count }, (_, index) => html`<${Cell} key=${index} ...${{ index, count, record, progress, actions }} />`)}
    </div>
  `;
}

function Cell({ index, count, record, progress, actions }) {
  const path = record?.outputs[index];
  const preview = progress?.previews.get(index);
  if (path) {
    const which = count > 1 ? ` (${index + 1} of ${count})` : "";
    return html`
      <button type="button" class="cell" aria-label=${`Open: ${record.input.prompt}${which}`} onClick=${() => actions.open(record, index)}>
        <${Picture} path=${path} alt="" onGone=${() => actions.gone(record)} />
      </button>
    `;
  }
  return html`
    <div class="cell">
      ${preview ? html`<img class="preview" src=${preview} alt="" />` : html`<${Glyph} name="spark" />`}
    </div>
  `;
}

function UnderWay({ text, fraction, onCancel }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const { current } = element;
    const card = current.closest(".card");
    return () => current.contains(document.activeElement) && card.querySelector(".caption button")?.focus();
  }, []);
  return html`
    <div class="under-way" ref=${element}>
      <div class="under-way-text">
        <span class="small">${text}</span>
        <button type="button" class="quiet" onClick=${onCancel}>Cancel</button>
      </div>
      <progress max="1" value=${fraction} aria-label="Progress"></progress>
    </div>
  `;
}

const INSTEAD = { failed: "Failed", canceled: "Canceled", gone: "No longer kept", succeeded: "No pictures" };

function Instead({ record: { status, error } }) {
  const hasFailed = status === "failed";
  return html`
    <div class="instead muted">
      <${Glyph} name=${hasFailed ? "warning" : "picture"} />
      <span>${INSTEAD[status]}</span>
      ${hasFailed && html`<p class="small problem">${error}</p>`}
    </div>
  `;
}

function Caption({ input, children }) {
  return html`
    <div class="caption">
      <p class="caption-prompt small" title=${input.prompt}>${input.prompt}</p>
      ${children}
    </div>
  `;
}
