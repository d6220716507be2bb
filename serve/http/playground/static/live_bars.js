// What lies on a timeline: the bars of requests, the steps of those that run, and the stripes of forwards.
// scale: {base, pixelsPerS, shown}, where base is the moment at x = 0 and shown the one at the right edge.

import { colourOf } from "./live_colours.js";
import { STRIPE_PX, stripes } from "./live_forwards.js";
import { rounded } from "./live_figures.js";
import { endOf, stepAt } from "./live_history.js";
import { endText } from "./live_lanes.js";
import { html } from "./vendor/preact.js";

export const AHEAD_S = 4; // how far an open bar reaches beyond the right edge, which cuts it
const MIN_WAIT_PX = 2;
const MIN_BAR_PX = 2;
const NAME_PX = 150; // a bar that has ended has its name from here on
const GAP_PX = 4;

/** bars: of the history, sorted by when they came. mine: Map from live id to {label} */
export function barNodes(bars, scale, mine) {
  const nextAt = new Map(); // lane -> when the next bar to the right begins
  return bars
    .toReversed()
    .map((bar) => {
      const node = barNode(bar, nextAt.get(bar.lane) ?? Infinity, scale, mine.get(bar.id));
      nextAt.set(bar.lane, bar.cameAt);
      return node;
    })
    .toReversed();
}

function barNode(bar, nextAt, { base, pixelsPerS, shown }, mine) {
  const isOver = endOf(bar) <= shown; // what ends a little later is known already, and is not told yet
  const at = (moment) => (moment - base) * pixelsPerS;
  const end = Math.min(endOf(bar), shown + AHEAD_S);
  const begin = bar.joinedAt ?? end;
  const place = {
    leftPx: at(begin),
    waitPx: at(begin) - at(bar.cameAt),
    widthPx: bar.joinedAt === null ? 0 : Math.max(MIN_BAR_PX, at(end) - at(begin)),
    roomPx: at(nextAt) - at(end) - GAP_PX,
  };
  return html`<${Bar} key=${bar.key} ...${{ bar, mine, isOver, ...place }} />`;
}

function Bar({ bar, mine, isOver, waitPx, leftPx, widthPx, roomPx }) {
  this.shouldComponentUpdate = hasChanged; // most bars have ended and stay as they are
  const end = isOver ? endText(textsOf(bar), widthPx, roomPx) : null;
  const endNode = end && html`${end.text}<i class="live-mark"></i>`;
  const hasName = !isOver || widthPx >= NAME_PX;
  const name = mine ? `You: ${mine.label}` : bar.size;
  const box = (left, width) => ({ left: `${left}px`, width: `${width}px` });
  return html`
    <div ...${looks(bar, isOver ? bar.state : "open", mine)} class="live-request" title=${describe(bar, mine)}>
      ${waitPx >= MIN_WAIT_PX && html`<div class="live-wait" style=${box(leftPx - waitPx, waitPx)}></div>`}
      ${widthPx > 0 &&
      html`
        <div class="live-bar" style=${box(leftPx, widthPx)}>
          ${hasName && html`<span class="live-name">${name}</span>`}
          ${end?.place === "inside" && html`<span class="live-end">${endNode}</span>`}
        </div>
      `}
      ${end?.place === "beside" &&
      html`<span class="live-end live-beside" style=${{ left: `${leftPx + widthPx}px` }}>${endNode}</span>`}
    </div>
  `;
}

/** The steps of a request that is in the denoiser, beside its lane. state: "waiting" or "running" */
export function stepNode(bar, state, shown, mine) {
  const text = state === "waiting" ? "waiting" : `${stepAt(bar, shown)}/${bar.steps}`;
  return html`<span key=${bar.key} ...${looks(bar, state, mine)} class="live-step">${text}</span>`;
}

/** The stripes of a denoiser's forwards. knots: of its history; count: forwards per stripe */
export function stripeNodes(knots, scale, windowS, count) {
  const first = Math.max(
    1,
    knots.findIndex((knot) => knot.at >= scale.shown - windowS - 1),
  );
  return count ? knots.slice(first).map((to, index) => stripeNode(knots[first + index - 1], to, scale, count)) : [];
}

/** The lines between two knots. */
function stripeNode(from, to, { base, pixelsPerS }, count) {
  const widthPx = (to.at - from.at) * pixelsPerS;
  const lines = stripes(from.forwards, to.forwards, widthPx, count);
  if (!lines || lines.gapPx < STRIPE_PX / 4) return null;
  const props = { leftPx: (from.at - base) * pixelsPerS, widthPx, ...lines };
  return html`<${Stripes} key=${`${from.at}/${from.forwards}`} ...${props} />`;
}

function Stripes({ leftPx, widthPx, gapPx, offsetPx }) {
  this.shouldComponentUpdate = hasChanged;
  const style = { left: `${leftPx}px`, width: `${widthPx}px`, "--gap": `${gapPx}px`, "--offset": `${offsetPx}px` };
  return html`<div class="live-forwards" style=${style}></div>`;
}

/** Whether a component has other props than before. (A node that is kept instead would keep all nodes before it.) */
function hasChanged(next) {
  return Object.keys(next).some((name) => next[name] !== this.props[name]);
}

/** The attributes by which live.css draws a bar. */
function looks(bar, state, mine) {
  const { hue, isDeep } = colourOf(bar.id);
  const style = { "--hue": hue, "--row": bar.lane };
  return { "data-deep": isDeep, "data-mine": Boolean(mine), "data-state": state, style };
}

/** The texts of a bar that has ended, the longest first. */
function textsOf({ step, steps }) {
  return step === steps ? [`${step}/${steps}`, `${steps}`] : [`${step}/${steps}`];
}

function describe(bar, mine) {
  const name = mine ? `Yours: ${mine.label}` : `Request ${bar.id}`;
  const parts = [name, `image ${bar.image + 1}`, bar.size, `${bar.steps} steps`, `${bar.rows} rows`];
  if (bar.model) parts.push(bar.model);
  if (bar.joinedAt !== null) parts.push(`waited ${rounded(Math.max(0, bar.joinedAt - bar.cameAt))} s`);
  if (bar.leftAt !== null) parts.push(bar.state === "done" ? "done" : `${bar.state} after ${bar.step} steps`);
  return parts.join(", ");
}
