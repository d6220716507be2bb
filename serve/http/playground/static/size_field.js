// The size: as many pixels as the model's own in a few shapes, or any that it can make.

import { NumberInput } from "./fields.js";
import { html } from "./vendor/preact.js";
import { presets, sizeFrom } from "./sizes.js";

/** errors: by the names of fields */
export function SizeField({ draft, model, errors, onChange }) {
  const isAsPicture = draft.start !== null;
  const own = isAsPicture && sizeFrom(draft.start, model.limits);
  const offered = presets(model);
  const now = chosen(draft, offered, model.defaults);
  const choose = (width, height) => onChange({ width, height, isOwnSize: false });
  const option = (key, name, size, onChoose) => html`
    <label class=${`size is-${key}`} key=${key}>
      <input type="radio" name="size" checked=${now === key} onChange=${onChoose} />
      <span class="size-shape"><${Shape} ...${size} /></span>
      <span class="size-name">${name}</span>
      <span class="size-pixels">${size.width}×${size.height}</span>
    </label>
  `;
  return html`
    <fieldset class="field">
      <legend>Size</legend>
      <div class="sizes">
        ${isAsPicture && option("auto", isSame(own, draft.start) ? "As it is" : "Its shape", own, () => choose(null, null))}
        ${offered.map((one) =>
          option(one.name, one.name, one, () => {
            const isUsual = !isAsPicture && one.width === model.defaults.width && one.height === model.defaults.height;
            choose(isUsual ? null : one.width, isUsual ? null : one.height);
          }),
        )}
        <label class="size">
          <input
            type="radio"
            name="size"
            checked=${now === "own"}
            onChange=${() => onChange({ ...ownSize(draft, model), isOwnSize: true })}
          />
          <span class="size-shape"><span class="shape is-own"></span></span>
          <span class="size-name">Custom</span>
          <span class="size-pixels">any</span>
        </label>
      </div>
      ${now === "own" && html`<${OwnSize} ...${{ draft, model, errors, onChange }} />`}
      ${now !== "own" && (errors.width ?? errors.height) && html`<p class="small problem">${errors.width ?? errors.height}</p>`}
    </fieldset>
  `;
}

function OwnSize({ draft, model: { limits }, errors, onChange }) {
  const side = (name, label, max) => html`
    <label class="side">
      <span class="small">${label}</span>
      <${NumberInput}
        id=${`field-${name}`}
        min=${limits.min_size}
        max=${max}
        step=${limits.size_multiple}
        value=${draft[name]}
        aria-invalid=${errors[name] ? "true" : undefined}
        aria-describedby="size-notes"
        onChange=${(pixels) => onChange({ [name]: pixels })}
      />
    </label>
  `;
  return html`
    <div class="own-size">${side("width", "Width", limits.max_width)}${side("height", "Height", limits.max_height)}</div>
    <p id="size-notes" class=${`small ${errors.width || errors.height ? "problem" : "muted"}`}>
      ${errors.width ??
      errors.height ??
      `Multiples of ${limits.size_multiple}, from ${limits.min_size} to ${limits.max_width} wide and ${limits.max_height} high.`}
    </p>
  `;
}

function Shape({ width, height }) {
  const longest = Math.max(width, height);
  return html`
    <span class="shape" style=${{ width: `${(width / longest) * 100}%`, height: `${(height / longest) * 100}%` }}></span>
  `;
}

function isSame(one, other) {
  return one.width === other.width && one.height === other.height;
}

function chosen({ start, width, height, isOwnSize }, offered, defaults) {
  if (isOwnSize) return "own";
  if (width === null && height === null && start) return "auto";
  const [across, down] = [width ?? defaults.width, height ?? defaults.height];
  return offered.find((one) => one.width === across && one.height === down)?.name ?? "own";
}

function ownSize({ start, width, height }, { defaults, limits }) {
  if (width !== null && height !== null) return { width, height };
  return start ? sizeFrom(start, limits) : { width: defaults.width, height: defaults.height };
}
