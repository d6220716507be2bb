// Dialogs over the page. The browser keeps the focus inside, and gives it back where it was.

import { Glyph } from "./glyphs.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

/** onClose: called by Escape, by a press beside the dialog, and by its own button */
export function Dialog({ label, kind = "", onClose, onKeyDown, children }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const closedByBrowser = ({ target }) => target === element.current && target.isConnected && onClose();
  return html`
    <dialog
      ref=${element}
      class=${`dialog ${kind}`}
      aria-label=${label}
      onClose=${closedByBrowser}
      onKeyDown=${onKeyDown}
      onMouseDown=${({ target }) => target === element.current && onClose()}
    >
      <div class="dialog-body">
        <button type="button" class="quiet icon dialog-close" aria-label="Close" onClick=${onClose}>
          <${Glyph} name="close" />
        </button>
        ${children}
      </div>
    </dialog>
  `;
}

/** Asks before something is lost. */
export function Confirm({ title, text, action, onConfirm, onClose }) {
  return html`
    <${Dialog} label=${title} kind="small-dialog" onClose=${onClose}>
      <h2>${title}</h2>
      <p>${text}</p>
      <div class="dialog-actions">
        <button type="button" onClick=${onClose}>Keep</button>
        <button type="button" class="danger" onClick=${onConfirm}>${action}</button>
      </div>
    <//>
  `;
}

/** session: see session.js */
export function KeyDialog({ session, onKey, onClose }) {
  const [text, setText] = useState("");
  const input = useRef(null);
  useEffect(() => input.current.focus(), [session.problem]);
  const submit = (event) => {
    event.preventDefault();
    if (text.trim()) onKey(text.trim());
  };
  return html`
    <${Dialog} label="API key" kind="small-dialog" onClose=${onClose}>
      <h2>API key</h2>
      <p class=${session.key && session.problem ? "problem" : ""} role=${session.problem ? "alert" : undefined}>
        ${session.problem ?? "A key is kept in this browser, and sent to this server only."}
      </p>
      <form class="stack" onSubmit=${submit}>
        <label for="api-key">Key</label>
        <input
          id="api-key"
          ref=${input}
          type="password"
          autocomplete="off"
          spellcheck=${false}
          value=${text}
          onInput=${({ target }) => setText(target.value)}
        />
        <p class="small muted">It is kept in this browser only, until you forget it.</p>
        <div class="dialog-actions">
          ${session.key && html`<button type="button" class="danger" onClick=${() => onKey(null)}>Forget the key</button>`}
          <button type="submit" class="primary">Use this key</button>
        </div>
      </form>
    <//>
  `;
}
