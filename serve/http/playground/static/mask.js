// The painter of masks: what is painted over a picture is made anew.

import { Glyph } from "./glyphs.js";
import { useCursor, useKeys, usePointer } from "./mask_input.js";
import { useMask } from "./mask_state.js";
import { brushSizes, placeOf, sizeAt } from "./mask_strokes.js";
import { html, useEffect, useId, useRef, useState } from "./vendor/preact.js";

/**
 * src: URL of the picture; value: data: URL of an earlier mask, or null; onChange: called after each change with a
 * data: URL of a PNG of the picture's own size, white where it is to be repainted and black elsewhere, or with null; of
 * a large picture first with a promise of it
 */
export function MaskPainter({ src, value, onChange }) {
  const size = useSize(src);
  if (size === undefined) return html`<p class="muted" role="status">The picture is being read…</p>`;
  if (size === null) return html`<p class="problem" role="alert">This picture cannot be shown.</p>`;
  return html`<${Painter} key=${src} ...${{ src, size, value, onChange }} />`;
}

function Painter({ src, size, value, onChange }) {
  const shown = useRef(null);
  const ring = useRef(null);
  const help = useId();
  const sizes = brushSizes(size);
  const [brush, setBrush] = useState({ place: placeOf(sizes.usual, sizes), isErasing: false });
  const change = (changes) => setBrush((now) => ({ ...now, ...changes }));
  const brushPx = sizeAt(brush.place, sizes);
  const mask = useMask(shown, size, value, onChange);
  const tool = { brushPx, isErasing: brush.isErasing, size, mask, move: useCursor(ring, size, brushPx) };
  const keys = useKeys(tool, shown, {
    onErase: () => change({ isErasing: !brush.isErasing }),
    onResize: (steps) => change({ place: Math.min(100, Math.max(0, brush.place + steps)) }),
  });
  const shape = { aspectRatio: `${size.width} / ${size.height}`, "--shape": size.width / size.height };
  return html`
    <div class="mask" ...${keys}>
      <${Tools} ...${{ brush, brushPx, mask }} onBrush=${change} />
      <div class="mask-stage" style=${shape}>
        <img src=${src} alt="" draggable=${false} />
        <canvas
          ref=${shown}
          class="mask-canvas"
          tabindex="0"
          role="application"
          aria-label="Mask on the picture"
          aria-describedby=${help}
          ...${usePointer(tool)}
        ></canvas>
        <div ref=${ring} class="mask-ring" data-erasing=${brush.isErasing} aria-hidden="true"></div>
      </div>
      <p id=${help} class="mask-help small muted">
        The right button or <kbd>E</kbd> erases, <kbd>[</kbd> and <kbd>]</kbd> change the size, <kbd>Ctrl Z</kbd> takes
        back. On the picture, the arrow keys move the brush and <kbd>Space</kbd> paints.
      </p>
    </div>
  `;
}

function Tools({ brush, brushPx, mask, onBrush }) {
  const id = useId();
  const choose = (isErasing) => ({
    type: "button",
    "aria-pressed": brush.isErasing === isErasing,
    onClick: () => onBrush({ isErasing }),
  });
  return html`
    <div class="mask-tools">
      <div class="mask-kinds" role="group" aria-label="Tool">
        <button ...${choose(false)}><${Glyph} name="brush" />Brush</button>
        <button ...${choose(true)}>Eraser</button>
      </div>
      <div class="mask-size">
        <label for=${id}>Size</label>
        <input
          id=${id}
          type="range"
          min="0"
          max="100"
          value=${brush.place}
          aria-valuetext=${`${brushPx} pixels`}
          onInput=${({ target }) => onBrush({ place: Number(target.value) })}
        />
        <span class="small muted" aria-hidden="true">${brushPx} px</span>
      </div>
      <button type="button" onClick=${mask.undo} disabled=${!mask.canUndo}>Undo</button>
      <button type="button" onClick=${mask.invert}>Invert</button>
      <button type="button" onClick=${mask.clear} disabled=${mask.share === 0}>Clear</button>
      <p class="mask-share small muted" role="status">${inWords(mask.share)}</p>
    </div>
  `;
}

function inWords(share) {
  if (share === 0) return "Nothing is painted.";
  return share < 0.01 ? "Less than 1% is painted." : `${Math.round(share * 100)}% is painted.`;
}

/** {width, height} of a picture in its own pixels; undefined before they are known, null if it cannot be read. */
function useSize(src) {
  const [known, setKnown] = useState({});
  useEffect(() => {
    const image = new Image();
    image.onload = () => setKnown({ src, size: { width: image.naturalWidth, height: image.naturalHeight } });
    image.onerror = () => setKnown({ src, size: null });
    image.src = src;
    return () => (image.onload = image.onerror = null);
  }, [src]);
  return known.src === src ? known.size : undefined;
}
