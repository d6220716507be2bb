// The picture to start from, and the mask that is painted on it.

import { Dialog } from "./dialogs.js";
import { CheckField, NumberField } from "./fields.js";
import { Glyph } from "./glyphs.js";
import { MaskPainter } from "./mask.js";
import { blobOf, dataUrlOf, keepPicture, pictureOf, usePictureUrl } from "./pictures.js";
import { defaultStrength } from "./settings.js";
import { html, useEffect, useState } from "./vendor/preact.js";

/** onFile: called with the chosen file */
export function StartField({ draft, needsMask, errors, onChange, onFile }) {
  const { start } = draft;
  const [isPainting, setIsPainting] = useState(false);
  const error = errors.image ?? errors.mask;
  return html`
    <div class=${`field ${error ? "is-wrong" : ""}`}>
      ${start
        ? html`<${Start} ...${{ draft, errors, onChange }} onPaint=${() => setIsPainting(true)} />`
        : html`<${Drop} isNeeded=${needsMask} onFile=${onFile} />`}
      ${error && html`<p id="field-image-error" class="small problem" role="alert">${error}</p>`}
      ${isPainting &&
      html`
        <${MaskDialog}
          start=${start}
          onMask=${(mask) => onChange({ start: { ...start, mask } })}
          onClose=${() => setIsPainting(false)}
        />
      `}
    </div>
  `;
}

function Drop({ isNeeded, onFile }) {
  return html`
    <label class="drop">
      <input
        id="field-image"
        type="file"
        accept="image/*"
        aria-describedby="drop-hint"
        onChange=${({ target }) => target.files.length && onFile(target.files[0])}
      />
      <${Glyph} name="picture" />
      <span>Start from a picture</span>
      <span id="drop-hint" class="small muted">
        ${isNeeded ? "This model repaints a part of one. Drop, paste or choose it." : "Drop, paste or choose one."}
      </span>
    </label>
  `;
}

function Start({ draft, errors, onChange, onPaint }) {
  const { start } = draft;
  const picture = usePictureUrl(start.picture);
  const mask = usePictureUrl(start.mask);
  return html`
    <div class="start">
      <div class="start-picture">
        ${picture && html`<img src=${picture} alt="The picture to start from" />`}
        ${mask &&
        html`<div class="start-mask" role="img" aria-label="What is to change" style=${{ maskImage: `url(${mask})` }}></div>`}
      </div>
      <div class="start-about">
        <p class="start-name" title=${start.name}>${start.name}</p>
        <p class="small muted">${start.width}×${start.height}</p>
        <button id="field-mask" type="button" onClick=${onPaint} disabled=${!picture}>
          <${Glyph} name="brush" />${start.mask ? "Edit the mask" : "Paint a mask"}
        </button>
      </div>
      <button
        type="button"
        class="quiet icon"
        aria-label="Remove the picture"
        title="Remove the picture"
        onClick=${() => onChange({ start: null, strength: null })}
      >
        <${Glyph} name="close" />
      </button>
    </div>
    <${NumberField}
      name="prompt_strength"
      label="Strength"
      hint="How much of the picture is made anew."
      min="0.05"
      max="1"
      step="0.05"
      value=${draft.strength}
      usual=${defaultStrength(start)}
      error=${errors.prompt_strength}
      onChange=${(strength) => onChange({ strength })}
    />
    ${start.mask &&
    html`
      <${CheckField}
        name="preserve_unmasked"
        label="Keep the rest exactly as it is"
        isOn=${draft.isRestKept}
        error=${errors.preserve_unmasked}
        onChange=${(isRestKept) => onChange({ isRestKept })}
      />
    `}
  `;
}

function MaskDialog({ start, onMask, onClose }) {
  const picture = usePictureUrl(start.picture);
  const before = useMask(start.mask);
  const [painted, setPainted] = useState(undefined); // undefined: not touched
  const finish = async () => {
    const mask = await painted; // the last stroke of a large one may still be on its way
    if (mask !== undefined) onMask(mask && (await keepPicture(blobOf(mask))));
    onClose();
  };
  return html`
    <${Dialog} label="Paint a mask" kind="mask-dialog" onClose=${finish}>
      <h2>Paint what is to change</h2>
      <p class="small muted">Only what you paint is made anew; the rest of the picture stays.</p>
      ${picture &&
      before !== undefined &&
      html`<${MaskPainter} src=${picture} value=${painted === undefined ? before : painted} onChange=${setPainted} />`}
      <div class="dialog-actions"><button type="button" class="primary" onClick=${finish}>Done</button></div>
    <//>
  `;
}

/** The kept mask as a data: URL; null if there is none, undefined until it is read. */
function useMask(id) {
  const [mask, setMask] = useState(undefined);
  useEffect(() => {
    if (!id) return setMask(null);
    pictureOf(id).then(async (blob) => setMask(blob && (await dataUrlOf(blob))));
  }, []);
  return mask;
}
