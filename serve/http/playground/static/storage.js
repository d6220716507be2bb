// Texts that this browser keeps. Where it may not, or has no room, they last until the page is closed.

const storage = allowed();
const instead = new Map();

export function keptText(key) {
  return instead.get(key) ?? storage?.getItem(key) ?? null;
}

export function keptKeys() {
  return [...new Set([...Object.keys(storage ?? {}), ...instead.keys()])];
}

/** Answers whether there is room for it. */
export function keepText(key, text) {
  instead.set(key, text);
  try {
    storage?.setItem(key, text);
  } catch {
    return false;
  }
  if (storage) instead.delete(key);
  return true;
}

export function dropText(key) {
  instead.delete(key);
  storage?.removeItem(key);
}

/** null where people do not allow it: then even asking for it fails. */
function allowed() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}
