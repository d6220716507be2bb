// What the server offers, and whether it is there. Asks again until it is.

import { ApiError } from "./api.js";
import { call } from "./session.js";
import { Value } from "./values.js";

const PAUSES_S = [0.5, 1, 2, 3, 5];
const FRESH_MS = 20_000;

/**
 * state: "loading", "ready", "starting" (it answers, but makes no pictures yet) or "absent"; detail: a sentence
 * models: entries of GET v1/models; adapters: entries of GET v1/adapters that requests can name
 */
export const server = new Value({ state: "loading", detail: null, models: [], adapters: [] });

let isLooking = false;
let lookedAt = 0;

/** Asks for everything, as often as it takes. Does nothing while that is already under way. */
export async function look() {
  if (isLooking) return;
  isLooking = true;
  try {
    for (let attempt = 0; !(await isThere()); attempt++) await pause(backOffS(attempt));
    lookedAt = Date.now();
  } finally {
    isLooking = false;
  }
}

/** Looks again when people come back to the page: models come and go. */
export function watchServer() {
  look();
  addEventListener("visibilitychange", () => {
    if (!document.hidden && Date.now() - lookedAt > FRESH_MS) look();
  });
}

export function backOffS(attempt) {
  return PAUSES_S[Math.min(attempt, PAUSES_S.length - 1)] * (0.8 + 0.4 * Math.random());
}

/** Resolves after the time, or throws when it is aborted. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const end = () => reject(signal.reason);
    if (signal?.aborted) return end();
    signal?.addEventListener("abort", end, { once: true });
    setTimeout(() => {
      signal?.removeEventListener("abort", end);
      resolve();
    }, seconds * 1000);
  });
}

async function isThere() {
  try {
    const { data: models } = await call("v1/models");
    const adapters = await allAdapters();
    server.now = { ...server.now, models, adapters };
    await call("readyz");
    server.now = { ...server.now, state: "ready", detail: null };
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    server.now = { ...server.now, state: error.status > 0 ? "starting" : "absent", detail: error.message };
    return false;
  }
}

async function allAdapters() {
  const found = [];
  for (let query = ""; query !== null; ) {
    const page = await call(`v1/adapters${query}`);
    found.push(...page.data);
    query = page.next && new URL(page.next).search;
  }
  return found.filter((adapter) => adapter.problem === null);
}
