// Forwards of a denoiser as stripes of its timeline. Pure functions.

const COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const MAX_RATIO = 1.8; // a stripe may be this much narrower or wider than wished before its count changes
const MAX_EXACT_RATE = 10; // forwards per second; above it half a forward is not to be seen
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
 * The knots with those of a report: {at, forwards, isExact}, when a denoiser had done so many forwards; sorted, and
 * never going down. A report comes anywhere in a forward, so it stands for half of one more. Where forwards are slow,
 * requests say exactly when some began and ended.
 */
export function withReport(knots, report, now) {
  const exact = report.forwards_per_s < MAX_EXACT_RATE ? exactKnots(report.requests) : [];
  const known = new Set(knots.filter(({ isExact }) => isExact).map(keyOf));
  const fresh = exact.filter((knot) => !known.has(keyOf(knot)));
  const all = [...knots, ...fresh, { at: now, forwards: report.forwards + 0.5, isExact: false }];
  return rising(all.sort((a, b) => a.at - b.at));
}

function exactKnots(requests) {
  const joined = requests.filter((request) => request.joined_at !== null);
  const done = requests.filter((request) => request.state === "done");
  return [
    ...joined.map((request) => ({ at: request.joined_at, forwards: request.first_forward - 1, isExact: true })),
    ...done.map((request) => ({ at: request.left_at, forwards: request.last_forward, isExact: true })),
  ];
}

/** Leaves out what contradicts the others: first what is not exact. */
function rising(knots) {
  const kept = [];
  for (const knot of knots) {
    while (kept.length && kept.at(-1).forwards > knot.forwards && !kept.at(-1).isExact && knot.isExact) kept.pop();
    if (!kept.length || kept.at(-1).forwards <= knot.forwards) kept.push(knot);
  }
  return kept;
}

function keyOf({ at, forwards }) {
  return `${forwards}/${at}`;
}

/**
 * The stripes between two knots, from `first` to `last` forwards and `widthPx` wide: {gapPx, offsetPx} of the lines
 * at multiples of `count`; null if there are none.
 */
export function stripes(first, last, widthPx, count) {
  if (last <= first) return null;
  const pixelsPerForward = widthPx / (last - first);
  const offset = (Math.ceil(first / count) * count - first) * pixelsPerForward;
  if (offset >= widthPx) return null;
  return { gapPx: count * pixelsPerForward, offsetPx: offset };
}
