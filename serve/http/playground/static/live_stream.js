// The stream of reports, for as long as the view can be seen.

import { events, isAborted } from "./api.js";
import { useEffect, useState } from "./vendor/preact.js";

const FIRST_WAIT_S = 1;
const MAX_WAIT_S = 15;
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
    follow(onStatus, setConnection, stop.signal).catch((error) => {
      if (!isAborted(error)) throw error;
    });
    return () => stop.abort();
  }, [isActive, attempt]);
  return { ...connection, retry: () => setAttempt(attempt + 1) };
}

async function follow(onStatus, setConnection, signal) {
  let waitS = FIRST_WAIT_S;
  while (!signal.aborted) {
    let phase = "lost";
    let message = "The connection to the server ended.";
    try {
      for await (const { event, data } of events("v1/status/stream", signal)) {
        if (event !== "status") continue;
        waitS = FIRST_WAIT_S;
        setConnection((now) => (now.phase === "live" ? now : { phase: "live", message: "" }));
        onStatus(data);
      }
    } catch (error) {
      if (isAborted(error) || signal.aborted) return;
      message = error.message;
      if (REFUSALS.includes(error.status)) [phase, waitS] = ["refused", MAX_WAIT_S];
    }
    setConnection({ phase, message });
    await pause(waitS, signal);
    waitS = Math.min(MAX_WAIT_S, waitS * 2);
  }
}

/** Waits; returns early if the signal comes. */
function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
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
