// What is painted: strokes and other changes, one after the other, each of which can be undone. Pure functions but for
// the canvas that they draw on. Places and sizes are in pixels of the picture; opaque is what is to be repainted.

/**
 * Draws a change over what is there: {kind: "stroke", isErasing, size, points: [{x, y}]}, {kind: "clear"},
 * {kind: "invert"}, or {kind: "load", canvas}. context: of the mask's canvas; width, height: of the picture
 */
export function drawChange(context, change, { width, height }) {
  if (change.kind === "stroke") return drawStroke(context, change, 0);
  if (change.kind === "invert") return over(context, "xor", () => context.fillRect(0, 0, width, height));
  context.clearRect(0, 0, width, height);
  if (change.kind === "load") context.drawImage(change.canvas, 0, 0, width, height);
  return undefined;
}

/**
 * Draws a stroke from its point number `first` on, joined to what was drawn before. Each piece is drawn by itself, so
 * the result is the same however many come at once.
 */
export function drawStroke(context, { isErasing, size, points }, first) {
  context.lineWidth = size;
  context.lineCap = "round";
  over(context, isErasing ? "destination-out" : "source-over", () => {
    points.slice(first).forEach(({ x, y }, index) => {
      const before = points[first + index - 1];
      context.beginPath();
      if (!before) {
        context.arc(x, y, size / 2, 0, 2 * Math.PI);
        context.fill();
        return;
      }
      context.moveTo(before.x, before.y);
      context.lineTo(x, y);
      context.stroke();
    });
  });
}

/** The changes that count: those from the last one on that leaves nothing of what was before. */
export function fromScratch(changes) {
  const last = changes.findLastIndex(({ kind }) => kind === "clear" || kind === "load");
  return changes.slice(Math.max(0, last));
}

/** Where the points from `first` on are, with the brush around them: {left, top, right, bottom}. */
export function boundsOf({ size, points }, first) {
  const drawn = points.slice(Math.max(0, first - 1));
  const [xs, ys] = [drawn.map(({ x }) => x), drawn.map(({ y }) => y)];
  const reach = size / 2 + 1;
  return {
    left: Math.min(...xs) - reach,
    top: Math.min(...ys) - reach,
    right: Math.max(...xs) + reach,
    bottom: Math.max(...ys) + reach,
  };
}

/** Both of two bounds in one; null stands for nothing. */
export function joined(one, other) {
  if (!one || !other) return one ?? other;
  return {
    left: Math.min(one.left, other.left),
    top: Math.min(one.top, other.top),
    right: Math.max(one.right, other.right),
    bottom: Math.max(one.bottom, other.bottom),
  };
}

/** The smallest and largest brush for a picture, and the one to begin with. */
export function brushSizes({ width, height }) {
  const longest = Math.max(width, height);
  return {
    least: Math.max(1, Math.round(longest / 200)),
    most: Math.round(longest / 2),
    usual: Math.round(longest / 12),
  };
}

/** The brush at a place of the slider, 0 to 100: each step is the same factor. */
export function sizeAt(place, { least, most }) {
  return Math.round(least * (most / least) ** (place / 100));
}

export function placeOf(size, { least, most }) {
  return Math.round((100 * Math.log(size / least)) / Math.log(most / least));
}

function over(context, operation, draw) {
  context.globalCompositeOperation = operation;
  draw();
  context.globalCompositeOperation = "source-over";
}
