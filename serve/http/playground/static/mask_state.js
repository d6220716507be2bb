// The mask in the page: it is drawn with the browser's frames, tells its changes, and takes in those from outside.

import { Board } from "./mask_board.js";
import { loadMask } from "./mask_png.js";
import { joined } from "./mask_strokes.js";
import { View } from "./mask_view.js";
import { useLayoutEffect, useRef, useState } from "./vendor/preact.js";

/**
 * What can be done with the mask: {share, canUndo, begin, extend, end, undo, invert, clear}. share: the part of the
 * picture that is painted; shown: ref of the canvas over the picture
 */
export function useMask(shown, size, value, onChange) {
  const kept = useRef(null);
  kept.current ??= new Mask(size);
  const mask = kept.current;
  const [state, setState] = useState({ share: 0, canUndo: false });
  mask.onState = setState;
  mask.onChange = onChange;
  useLayoutEffect(() => mask.show(shown.current), []);
  useLayoutEffect(() => mask.take(value), [value]);
  return { ...state, ...mask.actions };
}

class Mask {
  #board;
  #size;
  #view = null;
  #dirty = null; // bounds to draw anew with the next frame; null for all
  #isDue = false; // whether there is such a frame
  #value = null; // as the page has it, or is about to
  #telling = null; // AbortController of the PNG that is being made

  constructor(size) {
    this.#size = size;
    this.#board = new Board(size);
    const board = this.#board;
    const changed = () => (this.#draw(null), this.#tell());
    this.actions = {
      begin: (point, brushPx, isErasing) => this.#draw(board.begin(point, brushPx, isErasing)),
      extend: (points) => board.isPainting && this.#draw(board.extend(points)),
      end: () => board.isPainting && (board.end(), this.#tell()),
      undo: () => board.canUndo && (board.undo(), changed()),
      invert: () => (board.invert(), changed()),
      clear: () => (board.clear(), changed()),
    };
  }

  /** Draws on a canvas from now on, in the size that it has; returns how to stop. */
  show(canvas) {
    this.#view = new View(canvas);
    const fit = () => {
      if (!canvas.clientWidth) return;
      this.#view.resize(canvas.clientWidth, canvas.clientHeight);
      this.#draw(null);
    };
    const sizes = new ResizeObserver(fit);
    const themes = new MutationObserver(fit);
    sizes.observe(canvas);
    themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    return () => {
      sizes.disconnect();
      themes.disconnect();
      this.#telling?.abort();
      this.#view = null;
    };
  }

  /** Takes in the page's mask, unless it comes from here. It cannot be undone. */
  take(value) {
    if (value === this.#value) return;
    this.#value = value;
    const load = (loaded) => {
      if (this.#value !== value) return; // another came meanwhile
      this.#board.restart(loaded);
      this.#draw(null);
      const { width, height } = this.#size;
      this.#tell({ isSilent: !loaded || (loaded.width === width && loaded.height === height) });
    };
    if (value === null) load(null);
    else loadMask(value).then(load, () => load(null));
  }

  /**
   * Tells the page the mask as a PNG: at once if it is small, else first a promise of it. A later change overtakes an
   * earlier one.
   */
  #tell({ isSilent = false } = {}) {
    this.#telling?.abort();
    this.#telling = new AbortController();
    const tell = (png) => {
      if (!png) return;
      this.onState({ share: png.share, canUndo: this.#board.canUndo });
      if (isSilent) return;
      this.#value = png.url;
      this.onChange(png.url);
    };
    const made = this.#board.png(this.#telling.signal);
    if (!(made instanceof Promise)) return tell(made);
    const promised = made.then((png) => (tell(png), png?.url));
    if (isSilent) return;
    this.#value = promised;
    this.onChange(promised);
  }

  #draw(bounds) {
    if (this.#isDue) {
      this.#dirty = this.#dirty && bounds && joined(this.#dirty, bounds);
      return;
    }
    this.#dirty = bounds;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#view?.draw(this.#board, this.#dirty);
    });
  }
}
