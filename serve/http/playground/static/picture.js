// A finished picture of the server.

import { url } from "./api.js";
import { html, useState } from "./vendor/preact.js";

const SMALL_PX = 256;
const AGAIN_MS = 3000;

/** path: as in a record's outputs; onGone: called if the server has it no more */
export function Picture({ path, alt, onGone, isLarge = false }) {
  const [size, setSize] = useState(null);
  const [attempt, setAttempt] = useState(0);
  const onError = async () => {
    const status = await fetch(url(path), { method: "HEAD" }).then(
      (response) => response.status,
      () => 0,
    );
    if (status === 404) onGone?.();
    else setTimeout(() => setAttempt(attempt + 1), AGAIN_MS);
  };
  const isSmall = size && Math.max(size.width, size.height) < SMALL_PX;
  return html`
    <img
      class=${`picture ${isSmall ? "is-small" : ""}`}
      style=${isSmall ? { "--width": `${size.width}px`, "--height": `${size.height}px` } : null}
      src=${url(path) + (attempt ? `?attempt=${attempt}` : "")}
      alt=${alt}
      loading=${isLarge ? "eager" : "lazy"}
      decoding="async"
      onLoad=${({ target }) => setSize({ width: target.naturalWidth, height: target.naturalHeight })}
      onError=${onError}
    />
  `;
}
