// The API key, as far as people have to do with it: asks for one where the server wants it, and tries again.

import { ApiError, getKey, request, setKey } from "./api.js";
import { Value } from "./values.js";

/** key: the kept one; problem: why a key is asked for, in a sentence; isAsking: whether the dialog is open */
export const session = new Value({ key: getKey(), problem: null, isAsking: false });

/** Like `request`; where the server wants a key, it waits until there is another one. */
export async function call(path, options) {
  for (;;) {
    const key = getKey();
    try {
      return await request(path, options);
    } catch (error) {
      if (!isKeyProblem(error)) throw error;
      await otherKey(error, key);
    }
  }
}

export function isKeyProblem(error) {
  return error instanceof ApiError && error.status === 401;
}

/** Asks for a key and resolves once another one is kept. tried: the one that was refused, or null */
export async function otherKey(error, tried) {
  if (getKey() === tried) {
    const problem = tried ? `The key was refused. ${error.message}` : "This server needs an API key.";
    session.now = { key: tried, problem, isAsking: true };
  }
  await session.when(({ key }) => key !== tried);
}

export function askForKey() {
  session.now = { ...session.now, isAsking: true };
}

export function closeKeyDialog() {
  session.now = { ...session.now, isAsking: false };
}

/** Keeps a key, or forgets it if there is no text. */
export function changeKey(text) {
  setKey(text);
  rereadKey();
}

/** Called when a key may have been changed elsewhere. */
export function rereadKey() {
  session.now = { key: getKey(), problem: null, isAsking: false };
}
