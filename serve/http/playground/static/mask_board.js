// The canvas that is painted on: owns the mask of one picture and its changes.

import { boundsOf, drawChange, drawStroke, fromScratch } from "./mask_strokes.js";
import { pngOf } from "./mask_png.js";

const MIN_SIDE = 1024; // the mask of a small picture is finer than it, so that its edge is smooth
export const MAX_SIDE = 1536; // and that of a large one coarser, so that painting stays fast
const MAX_CHANGES = 200;

export class Board {
  #changes = [];
  #stroke = null;
  #oldest; // what is no longer in the changes

  /** size: {width, height} of the picture in pixels */
  constructor(size) {
    this.size = size;
    const longest = Math.max(size.width, size.height);
    this.scale = Math.min(Math.max(longest, MIN_SIDE), MAX_SIDE) / longest;
    this.mask = canvas(size.width * this.scale, size.height * this.scale);
    this.#oldest = canvas(this.mask.width, this.mask.height);
    this.context = contextOf(this.mask, this.scale);
  }

  get canUndo() {
    return this.#changes.length > 0;
  }

  get isPainting() {
    return this.#stroke !== null;
  }

  /** Begins a stroke; returns its bounds. */
  begin(point, size, isErasing) {
    this.#stroke = { kind: "stroke", isErasing, size, points: [point] };
    this.#add(this.#stroke);
    return boundsOf(this.#stroke, 0);
  }

  /** Goes on with the stroke; returns the bounds of what is new. */
  extend(points) {
    const first = this.#stroke.points.length;
    this.#stroke.points.push(...points);
    drawStroke(this.context, this.#stroke, first);
    return boundsOf(this.#stroke, first);
  }

  end() {
    this.#stroke = null;
  }

  clear() {
    this.#add({ kind: "clear" });
  }

  invert() {
    this.#add({ kind: "invert" });
  }

  /** Begins anew with another mask, opaque where it is to be repainted; null for an empty one. */
  restart(other) {
    this.#stroke = null;
    this.#changes = [];
    const change = other ? { kind: "load", canvas: other } : { kind: "clear" };
    for (const context of [this.context, contextOf(this.#oldest, this.scale)]) drawChange(context, change, this.size);
  }

  /** Takes the last change back. */
  undo() {
    this.#stroke = null;
    this.#changes.pop();
    const all = [{ kind: "load", canvas: this.#oldest }, ...this.#changes];
    for (const change of fromScratch(all)) drawChange(this.context, change, this.size);
  }

  /** {url, share}: see pngOf. */
  png(signal) {
    return pngOf(this.mask, this.size, signal);
  }

  #add(change) {
    this.#changes.push(change);
    drawChange(this.context, change, this.size);
    if (this.#changes.length <= MAX_CHANGES) return;
    drawChange(contextOf(this.#oldest, this.scale), this.#changes.shift(), this.size);
  }
}

function canvas(width, height) {
  const made = document.createElement("canvas");
  [made.width, made.height] = [Math.max(1, Math.round(width)), Math.max(1, Math.round(height))];
  return made;
}

/** A context in which places are in pixels of the picture. */
function contextOf(mask, scale) {
  const context = mask.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}
