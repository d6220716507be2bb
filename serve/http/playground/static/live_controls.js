// The words and controls around the timelines.

import { html } from "./vendor/preact.js";

const WINDOWS_S = [5, 20, 60];

export function Controls({ windowS, isPaused, hasTable, onWindow, onPause, onTable }) {
  const window = (seconds) => html`
    <button key=${seconds} aria-pressed=${seconds === windowS} onClick=${() => onWindow(seconds)}>${seconds} s</button>
  `;
  return html`
    <div class="live-controls">
      <div class="live-windows" role="group" aria-label="Seconds on the timelines">${WINDOWS_S.map(window)}</div>
      <button aria-pressed=${isPaused} onClick=${onPause}>Pause</button>
      <button aria-pressed=${hasTable} aria-controls="live-table" onClick=${onTable}>Table</button>
    </div>
  `;
}

/** How the connection is, in words. connection: of useStatusStream */
export function Connection({ connection: { phase, message, retry }, isPaused }) {
  const isWell = phase === "live" || phase === "connecting";
  const text = phase === "live" ? "Connected" : "Connecting…";
  return html`
    <p class="live-connection" role="status" data-phase=${isWell && isPaused ? "paused" : phase}>
      ${isWell ? (isPaused ? "Paused" : text) : message} ${phase === "lost" && "Trying again…"}
      ${!isWell && html`<button class="quiet" onClick=${retry}>Try now</button>`}
    </p>
  `;
}

/** What is to be seen, for those who see it for the first time. */
export function Explanation() {
  const key = (name, looks) => html`<li><i class=${looks}></i>${name}</li>`;
  return html`
    <div class="live-explained muted">
      <p>
        Each bar is one image, in a lane of its own. A step is one forward of the model for all of them: short requests
        get in beside long ones, and leave first.
      </p>
      <ul class="live-key small">
        ${key("waiting", "live-swatch live-hatched")} ${key("in the batch", "live-swatch")}
        ${key("yours", "live-swatch live-own")}
        <li><b>7/20</b> steps done of all</li>
        ${key("done", "live-mark live-done")} ${key("failed", "live-mark live-failed")}
        ${key("canceled", "live-mark live-canceled")}
      </ul>
    </div>
  `;
}

/** The invitation while nothing runs. */
export function Empty({ numDenoisers }) {
  return html`
    <div class="live-empty">
      <div class="live-invitation">
        <p class="live-empty-title">${numDenoisers ? "Nothing runs." : "No denoiser is running."}</p>
        <p><a href="#make">Make a picture</a>, or send load: <code>midstep bench</code></p>
      </div>
    </div>
  `;
}
