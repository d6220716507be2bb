// The running batch as it is: what people look at, and show to others.

import { ServerClock } from "./live_clock.js";
import { Connection, Controls, Empty, Explanation } from "./live_controls.js";
import { Figures } from "./live_figures.js";
import { History } from "./live_history.js";
import { paneHeight } from "./live_lanes.js";
import { Stages } from "./live_stages.js";
import { useIsSeen, useStatusStream } from "./live_stream.js";
import { Table, rowsOf } from "./live_table.js";
import { Track } from "./live_track.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

const TICK_MS = 500; // when nothing is reported, this often bars grow and old ones go
const TABLE_MS = 1000; // so often the table changes
const UNSEEN_TABLE_MS = 4000;
const NARROW_PX = 560;
const STILL = matchMedia("(prefers-reduced-motion: reduce)"); // then the timelines move at reports alone

/** mine: Map from live id to {label}, the requests that this browser made; they are marked. */
export function LiveView({ mine }) {
  const root = useRef(null);
  const isSeen = useIsSeen(root);
  const { history, moment: latest, connection } = useLive(isSeen);
  const [windowS, setWindowS] = useState(20);
  const [pausedAt, setPausedAt] = useState(null);
  const [hasTable, setHasTable] = useState(false);
  const rows = useSlowly(() => rowsOf(history, mine), hasTable ? TABLE_MS : UNSEEN_TABLE_MS, hasTable);
  const { status } = history;
  const isPaused = pausedAt !== null;
  const moment = pausedAt ?? latest;
  const isBusy = status !== null && history.isBusy(moment.at, windowS);
  const isGliding = isSeen && isBusy && !isPaused && connection.phase === "live" && !STILL.matches;
  return html`
    <div class="live" ref=${root} data-live=${connection.phase === "live"}>
      <header class="live-head">
        <h2>Live</h2>
        <${Connection} connection=${connection} isPaused=${isPaused} />
        <${Controls}
          ...${{ windowS, isPaused, hasTable, onWindow: setWindowS }}
          onPause=${() => setPausedAt(isPaused ? null : latest)}
          onTable=${() => setHasTable(!hasTable)}
        />
      </header>
      <${Figures} history=${history} />
      <${Explanation} />
      <${Tracks} ...${{ history, moment, windowS, isGliding, mine }}>
        ${status && !isBusy && html`<${Empty} numDenoisers=${history.denoisers.size} />`}
      <//>
      ${status && html`<${Stages} stages=${status.stages} device=${status.device} />`}
      <${Table} rows=${rows} isShown=${hasTable} />
    </div>
  `;
}

function Tracks({ history, moment, windowS, isGliding, mine, children }) {
  const ruler = useRef(null);
  const widthPx = useWidth(ruler);
  const denoisers = widthPx ? [...history.denoisers.values()] : [];
  const heightPx = paneHeight(denoisers.length, widthPx < NARROW_PX);
  return html`
    <div class="live-tracks" data-many=${denoisers.length > 2}>
      <div class="live-ruler" ref=${ruler}></div>
      ${denoisers.map(
        (denoiser) =>
          html`<${Track} key=${denoiser.id} ...${{ denoiser, moment, windowS, widthPx, heightPx, isGliding, mine }} />`,
      )}
      ${children}
    </div>
  `;
}

/**
 * {history, moment, connection}, fed while isActive: moment is what to show, and stands still while there is no
 * connection. Renders at each report, and at ticks where there is none.
 */
function useLive(isActive) {
  const kept = useRef(null);
  kept.current ??= { history: new History(), clock: new ServerClock(), moment: { at: 0, pageMs: 0 }, renderedMs: 0 };
  const { history, clock } = kept.current;
  const [, setCount] = useState(0);
  const renderAgain = () => {
    kept.current.renderedMs = performance.now();
    setCount((count) => count + 1);
  };
  const connection = useStatusStream(isActive, (status) => {
    clock.hear(status.now);
    history.absorb(status, clock.shown().at);
    renderAgain();
  });
  const isLive = isActive && connection.phase === "live";
  useEffect(() => {
    if (!isLive) return undefined;
    const timer = setInterval(() => {
      if (performance.now() - kept.current.renderedMs < TICK_MS) return;
      history.sample(clock.now());
      renderAgain();
    }, TICK_MS);
    return () => {
      clearInterval(timer);
      clock.reset();
    };
  }, [isLive]);
  if (isLive) kept.current.moment = clock.shown() ?? kept.current.moment;
  return { history, moment: kept.current.moment, connection };
}

/** A value that is computed anew when `key` changes, and otherwise at most every `everyMs`. */
function useSlowly(compute, everyMs, key) {
  const kept = useRef({ at: -Infinity });
  const now = performance.now();
  if (now - kept.current.at >= everyMs || kept.current.key !== key) kept.current = { at: now, key, value: compute() };
  return kept.current.value;
}

/** The width of an element's content in whole pixels; 0 before it is known. */
function useWidth(ref) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return width;
}
