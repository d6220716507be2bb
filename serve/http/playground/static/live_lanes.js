// Where bars lie: lanes, their height, and what fits beside a bar. Pure functions; times in seconds.

export const MIN_TEXT_LANE_PX = 13;
export const READABLE_LANE_PX = 20;
const MIN_LANE_PX = 7;
const MAX_LANE_PX = 26;
const ROOMY_LANES = 10; // up to here a short bar keeps the room of its text for itself
const CAPACITIES = [8, 12, 16, 20, 24, 28, 34, 42, 52, 64, 80, 100, 128];
const PANE_HEIGHTS = [
  [1, 442], // number of denoisers up to which, and pixels
  [2, 364],
  [4, 234],
  [Infinity, 169],
];
const CHARACTER_PX = 6.6;
const MARK_PX = 16;
const PADDING_PX = 10;

/**
 * The lane for a bar that begins at `from`: the lowest that is free. lanes[i] is {end, clear}: when the last bar of
 * lane i ends (Infinity while it runs) and when the text beside it does.
 */
export function freeLane(lanes, from) {
  const roomy = lanes.findIndex((lane) => lane.clear <= from);
  if (roomy >= 0) return roomy;
  if (lanes.length < ROOMY_LANES) return lanes.length;
  const free = lanes.findIndex((lane) => lane.end <= from);
  return free >= 0 ? free : lanes.length;
}

/** Height of a lane in pixels. `wanted`: number of lanes; they go up in steps, so that the height seldom changes. */
export function laneHeight(wanted, height) {
  const capacity = CAPACITIES.find((count) => count >= wanted) ?? wanted;
  return Math.max(MIN_LANE_PX, Math.min(MAX_LANE_PX, Math.floor(height / capacity)));
}

/** Height of a denoiser's lanes in pixels, by the number of denoisers on the page. */
export function paneHeight(numDenoisers, isNarrow) {
  const [, height] = PANE_HEIGHTS.find(([most]) => numDenoisers <= most);
  return isNarrow ? Math.min(height, 260) : height;
}

/** Width in pixels that a text of a bar takes, with a mark if it has one. */
export function textWidth(text, hasMark = false) {
  return text.length * CHARACTER_PX + (hasMark ? MARK_PX : 0) + PADDING_PX;
}

/**
 * The text of a bar that has ended: {text, place}, the first of `texts` that fits. place: "inside" the bar or "beside"
 * it; null if there is room for none.
 */
export function endText(texts, widthPx, roomPx) {
  for (const text of texts) {
    const wanted = textWidth(text, true);
    if (widthPx >= wanted) return { text, place: "inside" };
    if (roomPx >= wanted) return { text, place: "beside" };
  }
  return null;
}
