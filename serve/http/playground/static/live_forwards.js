// Forwards of a denoiser as stripes of its timeline. Pure functions.

const COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const MAX_RATIO = 1.8; // a stripe may be this much narrower or wider than wished before its count changes
export const STRIPE_PX = 18;

/**
 * How many forwards a stripe has, so that it is about STRIPE_PX wide. `current` is kept while it is good enough:
 * stripes that change their meaning are hard to read.
 */
export function forwardsPerStripe(forwardsPerS, pixelsPerS, current) {
  if (!forwardsPerS) return current;
  const wide = (count) => (count / forwardsPerS) * pixelsPerS;
  if (current && wide(current) >= STRIPE_PX / MAX_RATIO && wide(current) <= STRIPE_PX * MAX_RATIO) return current;
  return COUNTS.find((count) => wide(count) >= STRIPE_PX) ?? COUNTS.at(-1);
}

/**
 * The stripes between two reports, from `first` to `last` forwards and `widthPx` wide: {gapPx, offsetPx} of the lines
 * at multiples of `count`; null if there are none.
 */
export function stripes(first, last, widthPx, count) {
  if (last <= first) return null;
  const pixelsPerForward = widthPx / (last - first);
  const offset = (Math.ceil(first / count) * count - first) * pixelsPerForward;
  if (offset >= widthPx) return null;
  return { gapPx: count * pixelsPerForward, offsetPx: offset };
}
