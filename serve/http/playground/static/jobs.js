// Sends what is asked for, and cancels and deletes it. follow.js shows what becomes of it.

import { isAborted } from "./api.js";
import { dataUrlOf, newId, pictureOf } from "./pictures.js";
import { backOffS, look, pause } from "./server.js";
import { call } from "./session.js";
import { addRecord, removeRecord, updateRecord } from "./store.js";
import { Value } from "./values.js";

const NUM_PREVIEWS = 6;
const FILES = "/v1/files/";

/** What is on its way to the server, the newest first: {key, model, input, start, createdAt, note, stop} */
export const sending = new Value([]);

/**
 * Asks for pictures. While the server is absent, it tries again until it is there or `stop` is called.
 * Throws the ApiError of a refusal, and an AbortError after `stop`.
 */
export async function make({ model, input, start }) {
  const stopping = new AbortController();
  const one = { key: newId(), model, input, start, createdAt: Date.now(), note: null };
  one.stop = () => stopping.abort();
  sending.now = [one, ...sending.now];
  try {
    const body = { version: model, input: { ...input, num_previews: NUM_PREVIEWS, ...(await picturesOf(start)) } };
    const prediction = await submitted(body, one, stopping.signal);
    addRecord({
      id: prediction.id,
      liveId: prediction.live_id,
      createdAt: one.createdAt,
      model,
      input,
      start,
      ...shownOf(prediction),
    });
    return prediction;
  } finally {
    sending.now = sending.now.filter(({ key }) => key !== one.key);
  }
}

export async function cancel(id) {
  const prediction = await call(`v1/predictions/${id}/cancel`, { method: "POST" });
  updateRecord(id, shownOf(prediction));
}

/** Deletes a prediction and its pictures here and on the server, which may have deleted it already. */
export async function remove(id) {
  try {
    await call(`v1/predictions/${id}`, { method: "DELETE" });
  } catch (error) {
    if (!isUnknown(error)) throw error;
  }
  removeRecord(id);
}

/** Whether the server knows no such prediction any more. */
export function isUnknown(error) {
  return error.code === "prediction_not_found";
}

/** The fields of a record that a prediction determines. */
export function shownOf(prediction) {
  return {
    status: prediction.data_removed ? "gone" : prediction.status,
    outputs: (prediction.output ?? []).map(pathOf),
    error: prediction.error,
    tookS: prediction.metrics.predict_time ?? null,
  };
}

/** The same key on each attempt makes them one job, however many of them arrive. */
async function submitted(body, one, signal) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await call("v1/predictions", {
        method: "POST",
        body,
        headers: { "idempotency-key": one.key },
        signal,
      });
    } catch (error) {
      if (isAborted(error) || !error.isAbsence) throw error;
      look();
      sending.now = sending.now.map((other) =>
        other.key === one.key ? { ...other, note: `${error.message} Trying again.` } : other,
      );
      await pause(backOffS(attempt), signal);
    }
  }
}

async function picturesOf(start) {
  if (!start) return {};
  const [image, mask] = await Promise.all([start.picture, start.mask].map((id) => id && pictureOf(id)));
  if (!image || (start.mask && !mask)) throw new Error("The picture to start from is no longer in this browser.");
  return { image: await dataUrlOf(image), ...(mask && { mask: await dataUrlOf(mask) }) };
}

/** Of an image's URL the part that is right below any host's name and prefix. */
function pathOf(url) {
  return url.slice(url.indexOf(FILES) + 1);
}
