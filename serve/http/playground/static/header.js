// The page's head: name, tabs, documentation, key and theme; and below it what is not as it should be.

import { Glyph } from "./glyphs.js";
import { server } from "./server.js";
import { askForKey, session } from "./session.js";
import { chooseTheme, theme } from "./store.js";
import { html } from "./vendor/preact.js";
import { useValue } from "./values.js";

const TABS = [
  ["make", "Make"],
  ["gallery", "Gallery"],
  ["live", "Live"],
];
const NEXT_THEME = { auto: "dark", dark: "light", light: "auto" };
const THEME_GLYPHS = { auto: "system", dark: "dark", light: "light" };

/** tab: the open one */
export function Header({ tab }) {
  const chosen = useValue(theme);
  const { key, problem } = useValue(session);
  const next = NEXT_THEME[chosen];
  return html`
    <header class="head">
      <a class="name" href="#make"><img src="playground/icon.svg" alt="" width="28" height="28" /><h1>Midstep</h1></a>
      <nav class="tabs" aria-label="Main">
        ${TABS.map(([id, text]) => html`<a key=${id} href=${`#${id}`} aria-current=${id === tab ? "page" : undefined}>${text}</a>`)}
      </nav>
      <div class="head-tools">
        <a class="button quiet" href="docs"><${Glyph} name="docs" /><span class="wide-only">API docs</span><span class="unseen narrow-only">API docs</span></a>
        ${(key !== null || problem !== null) &&
        html`
          <button type="button" class="quiet icon" aria-label="API key" title="API key" onClick=${askForKey}><${Glyph} name="key" /></button>
        `}
        <button
          type="button"
          class="quiet icon"
          aria-label=${`Theme: ${chosen}`}
          title=${`Theme: ${chosen} (change to ${next})`}
          onClick=${() => chooseTheme(next)}
        >
          <${Glyph} name=${THEME_GLYPHS[chosen]} />
        </button>
      </div>
    </header>
  `;
}

/** model: the one that the form is for, or null */
export function Banners({ model }) {
  const { state, detail } = useValue(server);
  const { problem, isAsking } = useValue(session);
  return html`
    <div class="banners" role="status" aria-label="Server">
      ${problem && !isAsking &&
      html`<p class="banner is-bad">${problem} <button type="button" onClick=${askForKey}>Enter the key</button></p>`}
      ${state === "starting" && html`<p class="banner">The server is not ready yet: ${detail} Trying again.</p>`}
      ${state === "absent" && html`<p class="banner is-bad">${detail} Trying again. Pictures under way are not lost.</p>`}
      ${model?.device === "simulated" &&
      html`<p class="banner">This server simulates its device: pictures are grey and not real, only the time that they take is.</p>`}
    </div>
  `;
}
