// The mask as it is shown over its picture: filled, with an edge that can be seen on every picture.

import { MAX_SIDE } from "./mask_board.js";

const EDGE = [
  { color: "--mask-halo", radius: 2.5 }, // CSS pixels, the outer one first
  { color: "--mask-edge", radius: 1.5 },
];
const FILL_ALPHA = 0.45;
const DIRECTIONS = Array.from({ length: 8 }, (_, index) => [
  Math.cos((index * Math.PI) / 4),
  Math.sin((index * Math.PI) / 4),
]);

/** Draws a mask as it is shown: filled and with an edge. It owns the canvases that this takes. */
export class View {
  #shape = document.createElement("canvas");
  #ring = document.createElement("canvas");

  /** shown: the canvas over the picture */
  constructor(shown) {
    this.shown = shown;
  }

  /** Makes it as large as it is shown. width, height: in CSS pixels */
  resize(width, height) {
    const ratio = Math.min(devicePixelRatio, MAX_SIDE / Math.max(width, height));
    this.ratio = ratio;
    for (const each of [this.shown, this.#shape, this.#ring]) {
      each.width = Math.max(1, Math.round(width * ratio));
      each.height = Math.max(1, Math.round(height * ratio));
    }
  }

  /** bounds: what to draw anew, in pixels of the picture; null for all */
  draw(board, bounds) {
    const { width, height } = this.shown;
    const box = bounds ? this.#boxOf(bounds, board.size) : { x: 0, y: 0, width, height };
    const style = getComputedStyle(this.shown);
    const [shown, shape, ring] = [this.shown, this.#shape, this.#ring].map((each) => clipped(each, box));
    shape.drawImage(board.mask, 0, 0, width, height);
    for (const { color, radius } of EDGE) {
      clear(ring, box);
      for (const [x, y] of DIRECTIONS) ring.drawImage(this.#shape, x * radius * this.ratio, y * radius * this.ratio);
      tint(ring, style.getPropertyValue(color), box);
      shown.drawImage(this.#ring, 0, 0);
    }
    shown.globalCompositeOperation = "destination-out";
    shown.drawImage(this.#shape, 0, 0);
    shown.globalCompositeOperation = "source-over";
    tint(shape, style.getPropertyValue("--mask-fill"), box);
    shown.globalAlpha = FILL_ALPHA;
    shown.drawImage(this.#shape, 0, 0);
    for (const each of [shown, shape, ring]) each.restore();
  }

  #boxOf({ left, top, right, bottom }, size) {
    const [x, y] = [this.shown.width / size.width, this.shown.height / size.height];
    const margin = Math.ceil(EDGE[0].radius * this.ratio) + 2;
    const box = { x: Math.floor(left * x) - margin, y: Math.floor(top * y) - margin };
    return { ...box, width: Math.ceil(right * x) + margin - box.x, height: Math.ceil(bottom * y) + margin - box.y };
  }
}

/** The cleared context of a canvas, in which nothing outside the box can be drawn until it is restored. */
function clipped(each, box) {
  const context = each.getContext("2d");
  context.save();
  context.beginPath();
  context.rect(box.x, box.y, box.width, box.height);
  context.clip();
  clear(context, box);
  return context;
}

function clear(context, { x, y, width, height }) {
  context.clearRect(x, y, width, height);
}

function tint(context, color, { x, y, width, height }) {
  context.globalCompositeOperation = "source-in";
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.globalCompositeOperation = "source-over";
}
