// All settings of a picture but its prompt.

import { AdvancedFields } from "./advanced_fields.js";
import { edit, modelOf } from "./draft.js";
import { NumberField, SelectField, TextField } from "./fields.js";
import { takeFile } from "./given_pictures.js";
import { LoraField } from "./lora_field.js";
import { SeedField } from "./seed_field.js";
import { server } from "./server.js";
import { SizeField } from "./size_field.js";
import { carriedSize } from "./sizes.js";
import { StartField } from "./start_field.js";
import { made } from "./store.js";
import { html } from "./vendor/preact.js";
import { useValue } from "./values.js";

/** model: the chosen one; errors: by the names of fields */
export function SettingsFields({ draft: now, model, errors, setErrors }) {
  const adapters = fitting(useValue(server).adapters, model);
  const { limits, defaults } = model;
  return html`
    <div class="stack">
      <${TextField}
        name="negative_prompt"
        label="Negative prompt"
        rows="1"
        placeholder="What the picture should not show"
        value=${now.negative ?? defaults.negative_prompt ?? ""}
        error=${errors.negative_prompt}
        onChange=${(text) => edit({ negative: text === (defaults.negative_prompt ?? "") ? null : text })}
      />
      <${ModelField} draft=${now} model=${model} error=${errors.version} />
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

function ModelField({ draft: now, model, error }) {
  const { models } = useValue(server);
  const choose = (id) => {
    const hasOwnSize = now.isOwnSize || (now.start && now.width === null);
    edit({ model: id, ...(!hasOwnSize && carriedSize(now, model, modelOf(id))) });
  };
  if (models.length === 1) return null;
  return html`
    <${SelectField}
      name="version"
      label="Model"
      options=${models.map(({ id }) => [id, id])}
      value=${model.id}
      error=${error}
      onChange=${choose}
    />
  `;
}

function fitting(adapters, model) {
  return adapters.filter(({ models }) => models.includes(model.id));
}
