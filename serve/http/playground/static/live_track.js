// The timeline of one denoiser. Everything lies at its own moment on a layer that the browser moves to the left by
// itself, so between two reports the page computes nothing. What goes on is open to the right and is cut at "now".

import { AHEAD_S, barNodes, stepNode, stripeNodes } from "./live_bars.js";
import { rounded } from "./live_figures.js";
import { forwardsPerStripe } from "./live_forwards.js";
import { endOf, stateAt } from "./live_history.js";
import { MIN_TEXT_LANE_PX, READABLE_LANE_PX, laneHeight } from "./live_lanes.js";
import { html, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

const GLIDE_S = 30; // so long the layer keeps its origin
const MAX_DRIFT_S = 0.04;
const BEFORE_S = 2; // bars are kept beyond the left edge, where the texts beside them may still be seen
const SHARES = [1, 0.75, 0.5, 0.25]; // of the window: where its axis has a text

/**
 * denoiser: of the history; moment: {at, pageMs}, what is at the right edge, and the page's time for it; windowS,
 * widthPx: what the width shows, and its pixels; heightPx: of the lanes; isGliding: whether the layer moves between
 * reports; mine: Map from live id to {label}
 */
export function Track({ denoiser, moment, windowS, widthPx, heightPx, isGliding, mine }) {
  const [isTall, setIsTall] = useState(false);
  const perStripe = useStripes(denoiser, widthPx / windowS);
  const shown = moment.at;
  const bars = [...denoiser.bars.values()]
    .filter((bar) => endOf(bar) > shown - windowS - BEFORE_S && bar.cameAt < shown + AHEAD_S)
    .sort((a, b) => a.cameAt - b.cameAt);
  const open = bars
    .map((bar) => ({ bar, state: stateAt(bar, shown) }))
    .filter(({ state }) => state === "waiting" || state === "running");
  const numLanes = 1 + Math.max(0, ...bars.map((bar) => bar.lane));
  const usualPx = laneHeight(numLanes, heightPx);
  const lanePx = isTall ? Math.max(usualPx, READABLE_LANE_PX) : usualPx;
  const canGrow = isTall || usualPx < READABLE_LANE_PX;
  return html`
    <section class="live-track" data-gone=${denoiser.goneAt !== null} aria-label=${`Denoiser ${denoiser.id}`}>
      <${Heading} ...${{ denoiser, canGrow, isTall }} onTall=${setIsTall} />
      <${Lanes} ...${{ numLanes, lanePx, heightPx, isTall }} text=${inWords(denoiser, open)}>
        <div class="live-window">
          <${Layer} ...${{ denoiser, bars, moment, windowS, widthPx, isGliding, mine, perStripe }} />
        </div>
        <div class="live-steps">
          ${open.map(({ bar, state }) => stepNode(bar, state, shown, mine.get(bar.id)))}
        </div>
      <//>
      <${Axis} windowS=${windowS} perStripe=${perStripe} />
    </section>
  `;
}

function Heading({ denoiser, canGrow, isTall, onTall }) {
  const { report, goneAt } = denoiser;
  const rates = `${rounded(report.images_per_s)} images/s, ${rounded(report.forwards_per_s)} forwards/s`;
  const { rows_per_forward: rows, max_rows: most } = report;
  return html`
    <header>
      <h3>Denoiser <code>${denoiser.id}</code></h3>
      <p class="small muted">${goneAt === null ? [...report.models, rates].join(" · ") : "stopped"}</p>
      ${goneAt === null &&
      html`
        <p class="live-fill small">
          <meter min="0" max=${most} value=${rows} aria-label="Rows per forward"></meter>
          ${rounded(rows)} of ${most} rows
        </p>
      `}
      ${canGrow &&
      html`
        <button class="quiet live-grow" aria-pressed=${isTall} onClick=${() => onTall(!isTall)}>Taller lanes</button>
      `}
    </header>
  `;
}

/** The lanes, as high as heightPx; those that do not fit are scrolled to. */
function Lanes({ numLanes, lanePx, heightPx, isTall, text, children }) {
  const allPx = numLanes * lanePx;
  const style = { height: `${isTall ? Math.max(heightPx, allPx) : heightPx}px`, "--lane": `${lanePx}px` };
  const isScrolling = !isTall && allPx > heightPx;
  return html`
    <div
      class="live-lanes"
      data-text=${lanePx >= MIN_TEXT_LANE_PX}
      role="group"
      aria-label=${text}
      tabindex=${isScrolling ? 0 : undefined}
      style=${style}
    >
      <div class="live-scroll" style=${{ height: `${allPx}px` }} aria-hidden="true">${children}</div>
    </div>
  `;
}

function Layer({ denoiser, bars, moment, windowS, widthPx, isGliding, mine, perStripe }) {
  const layer = useRef(null);
  const pixelsPerS = widthPx / windowS;
  const base = useGlide(layer, moment, pixelsPerS, isGliding);
  const scale = { base, pixelsPerS, shown: moment.at };
  return html`
    <div class="live-layer" ref=${layer}>
      ${barNodes(bars, scale, mine)} ${stripeNodes(denoiser.knots, scale, windowS, perStripe)}
    </div>
  `;
}

function Axis({ windowS, perStripe }) {
  const forwards = perStripe === 1 ? "one forward" : `${perStripe} forwards`;
  return html`
    <div aria-hidden="true">
      <div class="live-axis">
        ${SHARES.map((share) => html`<span key=${share}>${windowS * share} s<span class="live-ago"> ago</span></span>`)}
        <span class="live-now">now</span>
      </div>
      <p class="live-legend small muted">${perStripe ? `A stripe is ${forwards}.` : ""}</p>
    </div>
  `;
}

/** The alternative to the picture. */
function inWords(denoiser, open) {
  const running = open.filter(({ state }) => state === "running").length;
  const counts = `${running} running, ${open.length - running} waiting`;
  return `Timeline of denoiser ${denoiser.id}: ${counts}. The table of requests has the details.`;
}

/** Moves the layer; returns the moment that lies at its origin. */
function useGlide(layer, shown, pixelsPerS, isGliding) {
  const { current } = useRef({ base: -Infinity, pixelsPerS: 0, animation: null, start: null });
  if (current.pixelsPerS !== pixelsPerS || Math.abs(shown.at - current.base) > GLIDE_S) {
    current.animation?.cancel();
    Object.assign(current, { base: shown.at, pixelsPerS, animation: null });
  }
  useLayoutEffect(() => {
    if (current.animation && isGliding && Math.abs(drift(current.start, shown)) < MAX_DRIFT_S) return;
    current.animation?.cancel();
    const at = (moment) => ({ transform: `translateX(${(current.base - moment) * pixelsPerS}px)` });
    layer.current.style.transform = at(shown.at).transform;
    current.start = shown;
    current.animation = null;
    if (!isGliding) return;
    const lengthS = 2 * GLIDE_S;
    current.animation = layer.current.animate([at(shown.at), at(shown.at + lengthS)], lengthS * 1000);
    current.animation.startTime = shown.pageMs;
  });
  useLayoutEffect(() => () => current.animation?.cancel(), []);
  return current.base;
}

/** By how many seconds the clock was set since `start`. */
function drift(start, shown) {
  return shown.at - start.at - (shown.pageMs - start.pageMs) / 1000;
}

/** How many forwards a stripe has; it seldom changes. */
function useStripes(denoiser, pixelsPerS) {
  const current = useRef(null);
  current.current = forwardsPerStripe(denoiser.report.forwards_per_s, pixelsPerS, current.current);
  return current.current;
}
