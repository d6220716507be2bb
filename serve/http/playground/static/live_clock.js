// The server's clock as this page sees it. What is shown lies a little in the past, so that everything up to
// that moment is known already and nothing has to be taken back.

const DELAY_S = 1.2; // the server reports forwards when they are done, every 0.5 s; the rest is for the network
const MAX_SAMPLES = 60;

export class ServerClock {
  #samples = [];

  /** Takes in the `now` of a report that has just arrived. */
  hear(serverNow, pageNow = pageSeconds()) {
    this.#samples.push(serverNow - pageNow);
    if (this.#samples.length > MAX_SAMPLES) this.#samples.shift();
  }

  /** Forgets what it knows, for example after the computer slept. */
  reset() {
    this.#samples = [];
  }

  /** The server's time now; null before the first report. */
  now() {
    return this.#samples.length ? offset(this.#samples) + pageSeconds() : null;
  }

  /**
   * The moment to show, {at, pageMs}: the server's seconds, and the page's time that belongs to them; null before the
   * first report.
   */
  shown() {
    const page = pageSeconds();
    return this.#samples.length ? { at: offset(this.#samples) + page - DELAY_S, pageMs: page * 1000 } : null;
  }
}

/** The server's clock minus the page's. Reports arrive late and never early, so the largest sample is the best. */
export function offset(samples) {
  return Math.max(...samples);
}

function pageSeconds() {
  return performance.now() / 1000;
}
