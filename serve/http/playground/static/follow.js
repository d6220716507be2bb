// Follows what is unfinished, and writes into its record what becomes of it.
// Browsers open six connections to a server, so only a few are followed all the time. The others are looked at in turn.

import { events, getKey, isAborted } from "./api.js";
import { isUnknown, shownOf } from "./jobs.js";
import { announce } from "./notices.js";
import { backOffS, look, pause } from "./server.js";
import { call, isKeyProblem, otherKey } from "./session.js";
import { isFinished, made, updateRecord } from "./store.js";
import { Value } from "./values.js";

const MAX_STREAMS = 2;
const LOOK_S = 0.7;
const LOOK_HIDDEN_S = 5;
const GLIMPSE_MS = 250; // the newest previews come right after the prediction

/** By the id of an unfinished prediction: {fraction, position, etaS, previews: Map from image index to data URL} */
export const progress = new Value(new Map());

const streams = new Map(); // id -> AbortController

/** Follows all unfinished records from now on, also those that come later. */
export function follow() {
  openStreams();
  made.watch(openStreams);
  addEventListener("visibilitychange", openStreams);
  lookInTurn();
}

function unfinished() {
  return made.now.filter((record) => !isFinished(record)).reverse();
}

/** Streams for the oldest ones; none while nobody sees the page. */
function openStreams() {
  const waiting = unfinished().map(({ id }) => id);
  for (const id of progress.now.keys()) if (!waiting.includes(id)) setProgress(id, null);
  for (const [id, stopping] of streams) {
    if (!document.hidden && waiting.includes(id)) continue;
    stopping.abort();
    streams.delete(id);
  }
  if (document.hidden) return;
  for (const id of waiting) {
    if (streams.size >= MAX_STREAMS) return;
    if (streams.has(id)) continue;
    const stopping = new AbortController();
    streams.set(id, stopping);
    stream(id, stopping.signal).catch((error) => {
      if (!isAborted(error)) throw error;
    });
  }
}

/** Reads a prediction's events until it is finished, over as many connections as it takes. */
async function stream(id, signal) {
  for (let attempt = 0; !signal.aborted; attempt++) {
    const key = getKey();
    try {
      for await (const one of events(`v1/predictions/${id}/events`, signal)) {
        attempt = 0;
        takeEvent(id, one);
      }
    } catch (error) {
      if (isAborted(error)) return;
      if (isUnknown(error)) return forget(id);
      if (isKeyProblem(error)) await otherKey(error, key);
      else look();
    }
    if (!signal.aborted) await pause(backOffS(attempt), signal);
  }
}

/** Looks at those that have no stream, one after the other. */
async function lookInTurn() {
  for (;;) {
    await pause(document.hidden ? LOOK_HIDDEN_S : LOOK_S);
    for (const { id, status } of unfinished()) {
      if (streams.has(id)) continue;
      try {
        if (status === "processing" && !document.hidden) await glimpse(id);
        else take(id, await call(`v1/predictions/${id}`));
      } catch (error) {
        if (isUnknown(error)) forget(id);
        else if (!isAborted(error)) look();
      }
    }
  }
}

/** The prediction as it is now, with its newest previews. */
async function glimpse(id) {
  const stopping = new AbortController();
  for await (const one of events(`v1/predictions/${id}/events`, stopping.signal)) {
    takeEvent(id, one);
    setTimeout(() => stopping.abort(), GLIMPSE_MS);
  }
}

function takeEvent(id, { event, data }) {
  if (event === "prediction") take(id, data);
  if (event === "preview") takePreview(id, data);
}

function take(id, prediction) {
  const record = made.now.find((one) => one.id === id);
  if (!record) return; // it was deleted meanwhile
  const known = progress.now.get(id);
  const shown = shownOf(prediction);
  if (isFinished(shown)) {
    setProgress(id, null);
    if (!isFinished(record)) announce(ending(shown));
  } else {
    const { progress: fraction, queue_position: position, eta_s: etaS } = prediction;
    setProgress(id, { fraction, position, etaS, previews: known?.previews ?? new Map() });
  }
  updateRecord(id, shown);
}

function takePreview(id, { image_index: index, media_type: type, b64_json: data }) {
  const known = progress.now.get(id);
  if (!known) return;
  const previews = new Map(known.previews).set(index, `data:${type};base64,${data}`);
  setProgress(id, { ...known, previews });
}

/** The server knows it no more: it was deleted, or its time is over. */
function forget(id) {
  setProgress(id, null);
  updateRecord(id, { status: "gone" });
}

function setProgress(id, one) {
  const next = new Map(progress.now);
  if (one) next.set(id, one);
  else next.delete(id);
  progress.now = next;
}

function ending({ status, outputs, error }) {
  if (status === "succeeded") return outputs.length > 1 ? `${outputs.length} pictures are ready.` : "A picture is ready.";
  return status === "failed" ? `A picture failed: ${error}` : "A picture was canceled.";
}
