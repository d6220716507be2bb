// The page's icons, drawn with lines on a square of 24.

import { html } from "./vendor/preact.js";

const PATHS = {
  again: "M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5",
  brush: "M14 5l5 5M4 20c4 0 6-1 6-4a3 3 0 0 0-3-3c-3 0-2 5-3 7zM9 13L18 4a1.5 1.5 0 0 1 2 0 1.5 1.5 0 0 1 0 2l-9 9",
  close: "M6 6l12 12M18 6L6 18",
  dark: "M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10z",
  dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1zM9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01",
  docs: "M5 4h9l5 5v11H5zM14 4v5h5M9 13h6M9 16.5h6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  key: "M14.5 9.5a4.5 4.5 0 1 0-4 4.5l1.5-1.5h2v-2zM12 12l8 8v-3h-2M7.5 8.5h.01",
  left: "M15 5l-7 7 7 7",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M19 5l-1.4 1.4M6.4 17.6L5 19",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  unlock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 6.8-1.2",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 2-2 5 5M15.5 9h.01",
  right: "M9 5l7 7-7 7",
  spark: "M12 3l2 7 7 2-7 2-2 7-2-7-7-2 7-2z",
  system: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16M12 8l5 .5M12 12h8M12 16l5-.5",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  warning: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

export function Glyph({ name }) {
  return html`<svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}
