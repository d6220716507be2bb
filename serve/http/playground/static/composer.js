// The form in which people say what picture they want.

import { AdvancedFields } from "./advanced_fields.js";
import { isAborted } from "./api.js";
import { chosenModel, draft, edit, startFromFile } from "./draft.js";
import { NumberField, SelectField, TextField } from "./fields.js";
import { Glyph } from "./glyphs.js";
import { make } from "./jobs.js";
import { LoraField } from "./lora_field.js";
import { say } from "./notices.js";
import { SeedField } from "./seed_field.js";
import { server } from "./server.js";
import { inputOf } from "./settings.js";
import { SizeField } from "./size_field.js";
import { StartField } from "./start_field.js";
import { made } from "./store.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { useValue } from "./values.js";
import { exampleOf } from "./wording.js";

const IS_WIDE = matchMedia("(min-width: 60rem)");

export function Composer() {
  const now = useValue(draft);
  const { adapters } = useValue(server);
  const model = chosenModel(now);
  const [errors, setErrors] = useState({});
  const [hasSettings, setHasSettings] = useState(IS_WIDE.matches);
  const form = useRef(null);
  usePastedPictures(setErrors);

  const send = async (event) => {
    event?.preventDefault();
    if (!model) return;
    setErrors({});
    const input = inputOf(now, model);
    edit({ seed: now.isSeedKept ? input.seed : null });
    try {
      await make({ model: model.id, input, start: now.start });
    } catch (error) {
      if (isAborted(error)) return;
      const name = fieldOf(error);
      setErrors({ [name]: name === "form" ? error.message : withoutName(error) });
      setHasSettings(true);
    }
  };
  useFocusOnError(form, errors);
  const onKeyDown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  };
  return html`
    <form class="composer" aria-label="Make a picture" novalidate ref=${form} onSubmit=${send} onKeyDown=${onKeyDown}>
      <${TextField}
        name="prompt"
        label="Prompt"
        rows="3"
        placeholder=${exampleOf(model)}
        maxLength=${model?.limits.max_prompt_length}
        value=${now.prompt}
        error=${errors.prompt}
        onChange=${(prompt) => edit({ prompt })}
      />
      <div class="send">
        <button type="submit" class="primary" aria-disabled=${model ? undefined : "true"}>
          <${Glyph} name="spark" />${now.count === 1 ? "Make picture" : `Make ${now.count} pictures`}
        </button>
        <span class="small muted keys"><kbd>Ctrl</kbd> <kbd>Enter</kbd></span>
      </div>
      ${errors.form && html`<p class="problem boxed" role="alert">${errors.form}</p>`}
      ${model &&
      html`
        <details class="settings" open=${hasSettings} onToggle=${({ target }) => setHasSettings(target.open)}>
          <summary>Settings</summary>
          <${Settings} ...${{ now, model, errors, setErrors }} adapters=${fitting(adapters, model)} />
        </details>
      `}
    </form>
  `;
}

function Settings({ now, model, adapters, errors, setErrors }) {
  const { limits, defaults } = model;
  return html`
    <div class="stack">
      <${TextField}
        name="negative_prompt"
        label="Negative prompt"
        rows="1"
        placeholder="What the picture should not show"
        maxLength=${limits.max_prompt_length}
        value=${now.negative ?? defaults.negative_prompt ?? ""}
        error=${errors.negative_prompt}
        onChange=${(text) => edit({ negative: text === (defaults.negative_prompt ?? "") ? null : text })}
      />
      <${ModelField} model=${model} error=${errors.version} />
      <${StartField}
        draft=${now}
        needsMask=${model.needs_mask}
        errors=${errors}
        onChange=${edit}
        onFile=${(file) => takeFile(file, setErrors)}
      />
      <${SizeField} draft=${now} model=${model} errors=${errors} onChange=${edit} />
      <${NumberField}
        name="num_outputs"
        label="Number of pictures"
        min="1"
        max=${limits.max_num_images}
        value=${now.count}
        usual=${1}
        error=${errors.num_outputs}
        onChange=${(count) => edit({ count: count ?? 1 })}
      />
      <${NumberField}
        name="num_inference_steps"
        label="Steps"
        min="1"
        max=${limits.max_num_inference_steps}
        value=${now.steps}
        usual=${defaults.num_inference_steps}
        error=${errors.num_inference_steps}
        onChange=${(steps) => edit({ steps })}
      />
      <${NumberField}
        name="guidance_scale"
        label="Guidance"
        hint="How closely the picture follows the prompt."
        min="0"
        max="100"
        slidesTo="15"
        step="0.5"
        value=${now.guidance}
        usual=${defaults.guidance_scale}
        error=${errors.guidance_scale}
        onChange=${(guidance) => edit({ guidance })}
      />
      <${SelectField}
        name="scheduler"
        label="Sampler"
        options=${model.samplers.map((name) => [name, name])}
        value=${now.sampler ?? defaults.sampler}
        error=${errors.scheduler}
        onChange=${(name) => edit({ sampler: name === defaults.sampler ? null : name })}
      />
      <${SeedField}
        seed=${now.seed}
        isKept=${now.isSeedKept}
        last=${useValue(made)[0]?.input.seed ?? null}
        error=${errors.seed}
        onChange=${edit}
      />
      ${(adapters.length > 0 || now.loras.length > 0) &&
      html`
        <${LoraField}
          loras=${now.loras}
          adapters=${adapters}
          prompt=${now.prompt}
          error=${errors.loras}
          onChange=${(loras) => edit({ loras })}
          onWord=${(word) => edit({ prompt: now.prompt ? `${now.prompt.trimEnd()}, ${word}` : word })}
        />
      `}
      <${AdvancedFields} draft=${now} errors=${errors} onChange=${edit} />
    </div>
  `;
}

function ModelField({ model, error }) {
  const { models } = useValue(server);
  if (models.length === 1) return null;
  return html`
    <${SelectField}
      name="version"
      label="Model"
      options=${models.map(({ id }) => [id, id])}
      value=${model.id}
      error=${error}
      onChange=${(id) => edit({ model: id })}
    />
  `;
}

function usePastedPictures(setErrors) {
  useEffect(() => {
    const paste = (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      takeFile(file, setErrors);
      say("The next picture starts from the pasted one.");
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  }, []);
}

async function takeFile(file, setErrors) {
  try {
    await startFromFile(file);
    setErrors({});
  } catch (error) {
    setErrors({ image: error.message });
  }
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
  return name && document.getElementById(`field-${name}`) ? name : "form";
}

/** Beside its field a sentence need not name it. */
function withoutName({ message, field }) {
  return message.startsWith(`${field}: `) ? message.slice(field.length + 2) : message;
}

function fitting(adapters, model) {
  return adapters.filter(({ models }) => models.includes(model.id));
}
