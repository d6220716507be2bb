// A finished picture of the server.

import { url } from "./api.js";
import { html, useState } from "./vendor/preact.js";

const SMALL_PX = 256;
const AGAIN_MS = 3000;

/**
 * path: as in a record's outputs; onGone: called if the server has it no more
 * onSize: called with its {width, height} in pixels
 */
export function Picture({ path, alt, onGone, onSize, isLarge = false }) {
  const [size, setSize] = useState(null);
  const [attempt, setAttempt] = useState(0);
  const onError = async () => {
    const status = await fetch(url(path), { method: "HEAD" }).then(
      (response) => response.status,
      () => 0,
    );
    if (status === 404) onGone?.();
    else setTimeout(() => setAttempt(attempt + 1), AGAIN_MS * (attempt + 1));
  };
  const onLoad = ({ target: { naturalWidth: width, naturalHeight: height } }) => {
    setSize({ width, height });
    onSize?.({ width, height });
  };
  const isSmall = size && Math.max(size.width, size.height) < SMALL_PX;
  return html`
    <img
      class=${`picture ${isSmall ? "is-small" : ""} ${size ? "" : "is-coming"}`}
      style=${isSmall ? { "--width": `${size.width}px`, "--height": `${size.height}px` } : null}
      src=${url(path) + (attempt ? `?attempt=${attempt}` : "")}
      alt=${alt}
      loading=${isLarge ? "eager" : "lazy"}
      decoding="async"
      onLoad=${onLoad}
      onError=${onError}
    />
  `;
}
