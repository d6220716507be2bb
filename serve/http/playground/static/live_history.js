// What the live view remembers: the bars of the last minute, by denoiser, and the figures of the last minutes.
// It is fed with the reports of `GET /v1/status` and owns what it is made of. Times are the server's, in seconds.

import { withReport } from "./live_forwards.js";
import { freeLane, textWidth } from "./live_lanes.js";

const KEEP_S = 62; // the longest window that the page offers, and a little
const SAMPLES_S = 180;
const MAX_BARS = 500; // per denoiser
const MAX_POINTS = 6;
const ASSUMED_PIXELS_PER_S = 40; // for the room that a text takes in its lane

export class History {
  status = null;
  denoisers = new Map(); // id -> {id, report, goneAt, bars: Map key -> bar, lanes, knots: of live_forwards.js}
  samples = []; // the figures, one a second

  /** Takes in a report. `shown`: the moment on the page; what ended KEEP_S before it is forgotten. */
  absorb(status, shown) {
    const before = this.status?.now ?? status.now;
    this.status = status;
    const reports = new Map(status.denoisers.map((report) => [report.id, report]));
    for (const report of reports.values()) this.#absorbDenoiser(report, status.now, before, shown);
    for (const [id, denoiser] of this.denoisers) {
      if (reports.has(id)) continue;
      if (denoiser.goneAt === null) leave(denoiser, status.now);
      if (denoiser.goneAt < shown - KEEP_S / 3) this.denoisers.delete(id);
    }
    this.sample(status.now);
  }

  /** Notes the figures as they are, at most once a second. To be called also when nothing is reported. */
  sample(now) {
    const last = this.samples.at(-1);
    if (!this.status || (last && now - last.at < 0.95)) return;
    const { throughput, queue } = this.status;
    this.samples.push({
      at: now,
      images_per_s: throughput.images_per_s,
      rows_per_forward: throughput.rows_per_forward,
      forwards_per_s: throughput.forwards_per_s,
      seconds: queue.seconds,
      waiting: queue.waiting,
    });
    while (this.samples[0].at < now - SAMPLES_S) this.samples.shift();
  }

  /** Whether something is to be seen in the last `windowS` seconds. */
  isBusy(shown, windowS) {
    const isSeen = (bar) => endOf(bar) > shown - windowS;
    return [...this.denoisers.values()].some((denoiser) => [...denoiser.bars.values()].some(isSeen));
  }

  #absorbDenoiser(report, now, before, shown) {
    const denoiser = this.denoisers.get(report.id) ?? newDenoiser(report.id);
    this.denoisers.set(report.id, denoiser);
    denoiser.report = report;
    denoiser.goneAt = null;
    denoiser.knots = withReport(denoiser.knots, report, now);
    const seen = new Set();
    for (const request of [...report.requests].sort((a, b) => a.came_at - b.came_at)) {
      const key = keyOf(request);
      seen.add(key);
      const known = denoiser.bars.get(key);
      const bar = known ?? newBar(key, request, denoiser.lanes);
      if (!known) denoiser.bars.set(key, bar);
      update(bar, request, now, denoiser.lanes);
    }
    for (const [key, bar] of denoiser.bars) {
      if (bar.leftAt === null && !seen.has(key)) end(bar, before, "gone", denoiser.lanes);
    }
    forget(denoiser, shown - KEEP_S);
  }
}

/** The step of a bar at a moment, a whole number; between two reports it goes up evenly. */
export function stepAt(bar, moment) {
  const after = bar.points.findIndex((point) => point.at >= moment);
  if (after < 0) return bar.points.at(-1)?.step ?? 0;
  if (after === 0) return bar.points[0].step;
  const [from, to] = [bar.points[after - 1], bar.points[after]];
  const share = to.at > from.at ? (moment - from.at) / (to.at - from.at) : 1;
  return Math.floor(from.step + share * (to.step - from.step));
}

/** "waiting" or "running" at a moment, afterwards how it ended; null before it came. */
export function stateAt(bar, moment) {
  if (moment < bar.cameAt) return null;
  if (bar.leftAt !== null && bar.leftAt <= moment) return bar.state;
  return bar.joinedAt !== null && bar.joinedAt <= moment ? "running" : "waiting";
}

/** When a bar ends; Infinity while it does not. */
export function endOf(bar) {
  return bar.leftAt ?? Infinity;
}

function newDenoiser(id) {
  return { id, report: null, goneAt: null, bars: new Map(), lanes: [], knots: [] };
}

function keyOf(request) {
  return `${request.id}/${request.image}/${request.pass}/${request.came_at}`;
}

function newBar(key, request, lanes) {
  const lane = freeLane(lanes, request.came_at);
  lanes[lane] = { end: Infinity, clear: Infinity };
  return {
    key,
    lane,
    id: request.id,
    image: request.image,
    pass: request.pass,
    model: request.model,
    size: `${request.width}×${request.height}`,
    steps: request.steps,
    rows: request.rows,
    cameAt: request.came_at,
    joinedAt: null,
    leftAt: null,
    state: "waiting",
    step: 0,
    points: [], // {at, step}, the last ones
  };
}

function update(bar, request, now, lanes) {
  if (bar.leftAt !== null) return;
  if (bar.joinedAt === null && request.joined_at !== null) bar.points.push({ at: request.joined_at, step: 0 });
  bar.joinedAt = request.joined_at;
  bar.step = request.step;
  bar.state = request.state;
  if (bar.joinedAt !== null) bar.points.push({ at: request.left_at ?? now, step: request.step });
  if (bar.points.length > MAX_POINTS) bar.points.shift();
  if (request.left_at !== null) end(bar, request.left_at, request.state, lanes);
}

function end(bar, at, state, lanes) {
  bar.leftAt = at;
  bar.state = state;
  const textS = textWidth(`${bar.steps}/${bar.steps}`, true) / ASSUMED_PIXELS_PER_S;
  const isShort = at - (bar.joinedAt ?? bar.cameAt) < textS;
  lanes[bar.lane] = { end: at, clear: isShort ? at + textS : at };
}

function leave(denoiser, now) {
  denoiser.goneAt = now;
  for (const bar of denoiser.bars.values()) {
    if (bar.leftAt === null) end(bar, now, "gone", denoiser.lanes);
  }
}

function forget(denoiser, before) {
  const { bars, knots, lanes } = denoiser;
  let excess = bars.size - MAX_BARS;
  for (const [key, bar] of bars) {
    if (endOf(bar) < before || (excess > 0 && bar.leftAt !== null)) {
      bars.delete(key);
      excess -= 1;
    }
  }
  while (knots.length > 2 && knots[1].at < before) knots.shift();
  while (lanes.length && lanes.at(-1).end < before) lanes.pop();
}
