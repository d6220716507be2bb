// The request as code, in one of three forms.

import { asCurl, asOpenAi, asReplicate } from "./copy_as.js";
import { announce, say } from "./notices.js";
import { html, useState } from "./vendor/preact.js";

const FORMS = [
  ["curl", asCurl],
  ["Python (openai)", asOpenAi],
  ["Python (replicate)", asReplicate],
];

/** asked, server: as in copy_as.js */
export function CodeBox({ asked, server }) {
  const [form, setForm] = useState(0);
  const [hasCopied, setHasCopied] = useState(false);
  const code = FORMS[form][1](asked, server);
  const choose = (index) => {
    setForm(index);
    setHasCopied(false);
  };
  const copy = async () => {
    if (!(await copied(code))) return say("This browser does not let the page copy. Select the text instead.", { isBad: true });
    setHasCopied(true);
    announce("Copied.");
  };
  return html`
    <div class="code">
      <div class="code-forms" role="group" aria-label="Copy as">
        ${FORMS.map(
          ([name], index) => html`
            <button type="button" key=${name} aria-pressed=${index === form} onClick=${() => choose(index)}>${name}</button>
          `,
        )}
      </div>
      <pre tabindex="0" role="group" aria-label="Code"><code>${code}</code></pre>
      ${asked.start &&
      html`<p class="small muted">${asked.start.mask ? "Save the pictures above as start.png and mask.png first." : "Save the picture above as start.png first."}</p>`}
      <button type="button" onClick=${copy}>${hasCopied ? "Copied" : "Copy"}</button>
    </div>
  `;
}

/** Whether it could be copied. `navigator.clipboard` is only there on https and localhost. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.querySelector("dialog[open]").append(area);
    const before = document.activeElement;
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    before?.focus();
    return isDone;
  }
}
