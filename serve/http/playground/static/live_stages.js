// The replicas of each stage, as they come and go.

import { html } from "./vendor/preact.js";

const MAX_DOTS = 16;
const STATES = ["running", "starting", "stopping"];
const DEVICES = { cpu: "on CPUs", cuda: "on GPUs", simulated: "on simulated devices" };
const NAMES = {
  ingress: "Ingress",
  encoder: "Text encoder",
  denoiser: "Denoiser",
  decoder: "VAE decoder",
  runner: "Job runner",
};

/** stages: of a report; device: of its denoisers */
export function Stages({ stages, device }) {
  return html`<section class="live-stages" aria-labelledby="live-stages-name">
    <h3 id="live-stages-name">Replicas <span class="muted">${DEVICES[device] ?? ""}</span></h3>
    <ul>
      ${Object.entries(stages).map(
        ([stage, counts]) => html`<li key=${stage}>
          <span class="live-stage">${NAMES[stage] ?? stage}</span>
          <span class="live-dots" aria-hidden="true">${dots(counts)}</span>
          <span class="live-counts">${inWords(counts)}</span>
        </li>`,
      )}
    </ul>
  </section>`;
}

/** The counts of a stage in words: "2 running, 1 starting". */
export function inWords(counts) {
  const parts = STATES.filter((state) => counts[state]).map((state) => `${counts[state]} ${state}`);
  return parts.join(", ") || "none";
}

function dots(counts) {
  const states = STATES.flatMap((state) => Array(counts[state] ?? 0).fill(state));
  return states
    .slice(0, MAX_DOTS)
    .map((state, index) => html`<i key=${index} class="live-dot" data-state=${state}></i>`);
}
