// The large figures of the live view, each with its last minutes.

import { html, useMemo } from "./vendor/preact.js";

const SPARK_WIDTH = 100;
const SPARK_HEIGHT = 28;
const MIN_SPAN_S = 60;
const FIGURES = [
  { key: "images_per_s", name: "Images per second" },
  { key: "rows_per_forward", name: "Rows per forward", isOfMost: true },
  { key: "forwards_per_s", name: "Forwards per second" },
  { key: "seconds", name: "Queue", unit: "s of work" },
  { key: "waiting", name: "Waiting images", isWhole: true },
];

/** history: of live_history.js; its samples change at most once a second, and only then are the lines drawn anew. */
export function Figures({ history }) {
  const { status, samples } = history;
  const mostRows = Math.max(0, ...(status?.denoisers ?? []).map((denoiser) => denoiser.max_rows));
  const now = samples.at(-1)?.at;
  const lines = useMemo(() => FIGURES.map(({ key }) => sparkline(samples, key, now)), [now]);
  return html`<dl class="live-figures">
    ${FIGURES.map(({ key, name, unit, isOfMost, isWhole }, index) => {
      const value = status ? figureOf(status, key) : null;
      return html`<div class="live-figure" key=${key}>
        <dt>${name}</dt>
        <dd>
          <span class="live-number">${value === null ? "–" : isWhole ? value : rounded(value)}</span>
          <span class="live-unit">${isOfMost && mostRows ? `of ${mostRows}` : unit}</span>
        </dd>
        <svg viewBox="0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">
          <path class="live-spark-area" d=${lines[index].area} />
          <path class="live-spark-line" d=${lines[index].line} />
        </svg>
      </div>`;
    })}
  </dl>`;
}

/** A number with about three digits: 0.04, 3.2, 31, 1,204. */
export function rounded(value) {
  const digits = value === 0 || value >= 100 ? 0 : value < 1 ? 2 : 1;
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** The paths {line, area} of a figure's samples; the right edge is `now`. Times without a sample are bridged. */
function sparkline(samples, key, now) {
  if (samples.length < 2) return { line: "", area: "" };
  const most = Math.max(1e-9, ...samples.map((sample) => sample[key]));
  const span = Math.max(MIN_SPAN_S, now - samples[0].at);
  const points = samples.map((sample) => {
    const x = SPARK_WIDTH * (1 - (now - sample.at) / span);
    const y = SPARK_HEIGHT - 1 - (sample[key] / most) * (SPARK_HEIGHT - 3);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  const line = `M${points.join("L")}`;
  const first = points[0].split(",")[0];
  return { line, area: `${line}L${SPARK_WIDTH},${SPARK_HEIGHT}L${first},${SPARK_HEIGHT}Z` };
}

function figureOf(status, key) {
  return key in status.queue ? status.queue[key] : status.throughput[key];
}
