// Values that parts of the page watch.

import { useEffect, useState } from "./vendor/preact.js";

export class Value {
  #now;
  #listeners = new Set();

  constructor(now) {
    this.#now = now;
  }

  get now() {
    return this.#now;
  }

  set now(next) {
    if (Object.is(next, this.#now)) return;
    this.#now = next;
    for (const listener of [...this.#listeners]) listener(next);
  }

  /** Calls the listener at each change; the answer ends that. */
  watch(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Resolves once the value fulfils the condition. */
  when(condition) {
    return new Promise((resolve) => {
      if (condition(this.#now)) return resolve(this.#now);
      const end = this.watch((now) => {
        if (!condition(now)) return;
        end();
        resolve(now);
      });
    });
  }
}

/** A hook: the value now, and another drawing whenever it changes. */
export function useValue(value) {
  const [, redraw] = useState(0);
  const drawn = value.now;
  useEffect(() => {
    const again = () => redraw((count) => count + 1);
    if (value.now !== drawn) again(); // it changed before anybody watched
    return value.watch(again);
  }, [value]);
  return drawn;
}
