// The form in which people say what picture they want.

import { isAborted } from "./api.js";
import { chosenModel, draft, edit } from "./draft.js";
import { TextField } from "./fields.js";
import { useGivenPictures } from "./given_pictures.js";
import { Glyph } from "./glyphs.js";
import { make } from "./jobs.js";
import { announce } from "./notices.js";
import { server } from "./server.js";
import { inputOf } from "./settings.js";
import { SettingsFields } from "./settings_fields.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { useValue } from "./values.js";
import { exampleOf } from "./wording.js";

const PICTURES = ["image", "mask"];
const IS_WIDE = matchMedia("(min-width: 60rem)");

export function Composer() {
  const now = useValue(draft);
  useValue(server);
  const model = chosenModel(now);
  const [errors, setErrors] = useState({});
  const [isWaiting, setIsWaiting] = useState(false); // for the models; then it sends
  const [hasSettings, setHasSettings] = useState(IS_WIDE.matches);
  const form = useRef(null);
  const isDropping = useGivenPictures(setErrors);

  const send = async (event) => {
    event.preventDefault();
    if (isWaiting) return;
    setErrors({});
    if (!model) {
      setIsWaiting(true);
      announce("It is sent as soon as the server is there.");
      await server.when(({ models }) => models.length > 0);
      setIsWaiting(false);
    }
    const found = await ask(chosenModel(draft.now));
    if (!found) return;
    setErrors(found);
    setHasSettings(true);
  };
  useFocusOnError(form, errors);
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    if (event.repeat || event.target.closest("dialog")) event.preventDefault();
    else send(event);
  };
  return html`
    <form
      class=${`composer ${isDropping ? "is-dropping" : ""}`}
      aria-label="Make a picture"
      novalidate
      ref=${form}
      onSubmit=${send}
      onKeyDown=${onKeyDown}
    >
      <${TextField}
        name="prompt"
        label="Prompt"
        rows="3"
        placeholder=${exampleOf(model)}
        value=${now.prompt}
        error=${errors.prompt}
        onChange=${(prompt) => edit({ prompt })}
      />
      <div class="send">
        <button type="submit" class="primary" aria-disabled=${isWaiting ? "true" : undefined}>
          <${Glyph} name="spark" />${isWaiting ? "Waiting for the server" : sendText(now)}
        </button>
        <span class="small muted keys"><kbd>Ctrl</kbd> <kbd>Enter</kbd></span>
      </div>
      ${errors.form && html`<p class="problem boxed" role="alert">${errors.form}</p>`}
      ${model &&
      html`
        <details class="settings" open=${hasSettings} onToggle=${({ target }) => setHasSettings(target.open)}>
          <summary>Settings</summary>
          <${SettingsFields} draft=${now} ...${{ model, errors, setErrors }} />
        </details>
      `}
    </form>
  `;
}

function sendText({ count }) {
  return count === 1 ? "Make picture" : `Make ${count} pictures`;
}

/** Asks for what is in the form. Resolves to the error by the name of its field; null if there is none. */
async function ask(model) {
  const { start, isSeedKept } = draft.now;
  const input = inputOf(draft.now, model);
  edit({ seed: isSeedKept ? input.seed : null });
  requestAnimationFrame(showNewest);
  try {
    await make({ model: model.id, input, start });
  } catch (error) {
    if (isAborted(error)) return null;
    const name = fieldOf(error);
    return { [name]: name === "form" ? error.message : withoutName(error) };
  }
  return null;
}

/** On a phone what was asked for may be far below the form. */
function showNewest() {
  if (!IS_WIDE.matches) document.querySelector(".newest .card")?.scrollIntoView({ block: "nearest" });
}

function useFocusOnError(form, errors) {
  useEffect(() => {
    const [name] = Object.keys(errors);
    form.current.querySelector(`#field-${name}`)?.focus();
  }, [errors]);
}

/** The form's name of the field at fault; "form" if it has none. */
function fieldOf({ field }) {
  const name = field?.replace(/^input\./, "").replace(/[.[].*/, "");
  // Of these two the form has one at a time, and shows the errors of both there.
  const names = PICTURES.includes(name) ? PICTURES : [name];
  return names.find((one) => document.getElementById(`field-${one}`)) ?? "form";
}

/** Beside its field a sentence need not name it. */
function withoutName({ message, field }) {
  return message.startsWith(`${field}: `) ? message.slice(field.length + 2) : message;
}
