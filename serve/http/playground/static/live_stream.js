// The stream of reports, for as long as the view can be seen.

import { ApiError, events, isAborted } from "./api.js";
import { pause } from "./server.js";
import { useEffect, useState } from "./vendor/preact.js";

const FIRST_WAIT_S = 1;
const MAX_WAIT_S = 15;
const USUAL_MS = 5000; // a stream that lasted longer ended as usual
const ENDED = "The connection to the server ended.";
const REFUSALS = [401, 403, 404];

/**
 * Calls onStatus with each report while isActive, and reconnects. Returns {phase, message, retry}: phase is
 * "connecting", "live", "lost" (it tries again by itself) or "refused" (so too, but later); message is the server's
 * sentence.
 */
export function useStatusStream(isActive, onStatus) {
  const [connection, setConnection] = useState({ phase: "connecting", message: "" });
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    if (!isActive) return undefined;
    const stop = new AbortController();
    follow(onStatus, setConnection, stop.signal);
    return () => stop.abort();
  }, [isActive, attempt]);
  return { ...connection, retry: () => setAttempt(attempt + 1) };
}

async function follow(onStatus, setConnection, signal) {
  let waitS = FIRST_WAIT_S;
  const hear = (status) => {
    waitS = FIRST_WAIT_S;
    setConnection((now) => (now.phase === "live" ? now : { phase: "live", message: "" }));
    onStatus(status);
  };
  while (!signal.aborted) {
    const begunMs = performance.now();
    const problem = await listen(hear, signal);
    if (signal.aborted) return;
    if (!problem && performance.now() - begunMs > USUAL_MS) continue; // the server ends long streams
    const isRefused = REFUSALS.includes(problem?.status);
    if (isRefused) waitS = MAX_WAIT_S;
    setConnection({ phase: isRefused ? "refused" : "lost", message: problem?.message ?? ENDED });
    await pause(waitS, signal).catch(() => {}); // aborted: the loop ends
    waitS = Math.min(MAX_WAIT_S, waitS * 2);
  }
}

/** Calls hear with each report of one connection; returns the ApiError that ended it, or null. */
async function listen(hear, signal) {
  try {
    for await (const { event, data } of events("v1/status/stream", signal)) {
      if (event === "status") hear(data);
    }
    return null;
  } catch (error) {
    if (error instanceof ApiError || isAborted(error)) return error;
    throw error;
  }
}

/** Whether an element can be seen: the page is not hidden, and neither is the element or what it is in. */
export function useIsSeen(ref) {
  const [isInView, setIsInView] = useState(false);
  const [isPageSeen, setIsPageSeen] = useState(!document.hidden);
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => setIsInView(entries.at(-1).isIntersecting));
    observer.observe(ref.current);
    const onChange = () => setIsPageSeen(!document.hidden);
    document.addEventListener("visibilitychange", onChange);
    return () => {
      observer.disconnect();
      document.removeEventListener("visibilitychange", onChange);
    };
  }, []);
  return isInView && isPageSeen;
}
