// Calls of the server's API. Owns the API key, which is kept in this browser and goes to this server only.

import { dropText, keepText, keptText } from "./storage.js";

export const KEY = "midstep.key";
const BASE = new URL("..", import.meta.url); // right below any prefix
const UNREACHABLE = "The server cannot be reached.";
const SILENCE_MS = 45_000; // the server pings every 15 s
const NOT_THE_SERVER = "Something on the way to the server answered in its place.";
const NO_KEY = "Keys have only letters from A to Z, digits and signs.";
const IN_HEADERS = /^[\x21-\x7e]+$/;
const BROKE = "The connection to the server broke.";

export class ApiError extends Error {
  /**
   * status: 0 if there was no answer; code: of the server's errors, such as "job_not_found", or null
   * field: the name of the field at fault, such as "input.width", or null
   */
  constructor(message, { status = 0, code = null, field = null, requestId = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, field, requestId });
  }

  /** Whether the server is not there at the moment: it restarts, or what is before it has nothing to ask. */
  get isAbsence() {
    return [0, 502, 503, 504].includes(this.status) || (this.status === 404 && this.code === null);
  }
}

/** The kept API key; null if there is none. */
export function getKey() {
  return keptText(KEY);
}

/** Keeps an API key; an empty text or null forgets it. */
export function setKey(text) {
  if (text) keepText(KEY, text);
  else dropText(KEY);
}

/** The URL of a path such as "v1/models". */
export function url(path) {
  return new URL(path, BASE).href;
}

/** The parsed JSON of the answer; null if it is not JSON. A plain object as `body` is sent as JSON. */
export async function request(path, options = {}) {
  const response = await answer(path, options);
  if (response.status === 204 || !response.headers.get("content-type")?.includes("json")) return null;
  return response.json().catch((error) => {
    throw isAborted(error) ? error : new ApiError(BROKE);
  });
}

/**
 * Yields {event, data} of a stream of server-sent events until it ends. A connection that breaks, or on which not
 * even the server's pings come any more, is an ApiError.
 */
export async function* events(path, signal) {
  const response = await answer(path, { headers: { accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await inTime(reader.read()).catch((error) => {
        throw isAborted(error) ? error : new ApiError(BROKE);
      });
      if (done) return;
      const blocks = (rest + value).replace(/\r\n/g, "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsedEvent(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What is promised, or an error if it does not come while the connection is alive. */
async function inTime(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ApiError(BROKE)), SILENCE_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export function isAborted(error) {
  return error?.name === "AbortError";
}

async function answer(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = new Headers(headers);
  const key = getKey();
  if (key && !IN_HEADERS.test(key)) throw new ApiError(NO_KEY, { status: 401 });
  if (key) sent.set("authorization", `Bearer ${key}`);
  let payload = body;
  if (body && Object.getPrototypeOf(body) === Object.prototype) {
    payload = JSON.stringify(body);
    sent.set("content-type", "application/json");
  }
  let response;
  try {
    response = await fetch(url(path), { method, body: payload, headers: sent, signal, cache: "no-store" });
  } catch (error) {
    throw isAborted(error) ? error : new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw await problem(response);
  if (response.headers.get("content-type")?.includes("html")) throw new ApiError(NOT_THE_SERVER); // such as a login
  return response;
}

async function problem(response) {
  const told = (await response.json().catch(() => null)) ?? {};
  const sentence = typeof told.detail === "string" ? told.detail : `The server answered ${response.status}.`;
  return new ApiError(sentence, {
    status: response.status,
    code: told.error_type ?? null,
    field: told.error?.param ?? null,
    requestId: response.headers.get("x-request-id"),
  });
}

/** A block of lines as an event; null for comments, which keep the connection open. */
function parsedEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, name, value] = line.match(/^([^:]*):? ?(.*)$/s);
    if (name === "event") event = value;
    if (name === "data") data.push(value);
  }
  if (!data.length) return null;
  try {
    return { event, data: JSON.parse(data.join("\n")) };
  } catch {
    throw new ApiError(BROKE);
  }
}
