// The form's fields. Each has the name of the server's field, by which errors find it.

import { html, useState } from "./vendor/preact.js";

/** A label, a control, a hint and the error. children: makes the control from its attributes */
export function Field({ name, label, hint, error, aside, children }) {
  const id = `field-${name}`;
  const notes = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  return html`
    <div class=${`field ${error ? "is-wrong" : ""}`}>
      <div class="field-head"><label for=${id}>${label}</label>${aside}</div>
      ${children({ id, name, "aria-describedby": notes || undefined, "aria-invalid": error ? "true" : undefined })}
      ${hint && html`<p id=${`${id}-hint`} class="small muted">${hint}</p>`}
      ${error && html`<p id=${`${id}-error`} class="small problem">${error}</p>`}
    </div>
  `;
}

/**
 * A number as it is typed: each number counts at once, and what is shown is the text until the field is left.
 * value: null shows an empty field; onChange: called with a number, or with null for an empty field
 */
export function NumberInput({ value, onChange, ...attributes }) {
  const [text, setText] = useState(null);
  const change = ({ target }) => {
    setText(target.value);
    const number = target.value === "" ? null : Number(target.value);
    if (!target.validity.badInput && !Number.isNaN(number)) onChange(number);
  };
  return html`
    <input ...${attributes} type="number" value=${text ?? value ?? ""} onInput=${change} onBlur=${() => setText(null)} />
  `;
}

/** A number with a slider beside it, which is for the mouse: the number has the keyboard's arrows. */
export function NumberField({ name, label, value, usual, min, max, step = 1, slidesTo = max, hint, error, onChange }) {
  const change = (number) => onChange(number === usual ? null : number);
  const control = (attributes) => html`
    <div class="slider">
      <input
        type="range"
        tabindex="-1"
        aria-hidden="true"
        min=${min}
        max=${slidesTo}
        step=${step}
        value=${value ?? usual}
        onInput=${({ target }) => change(Number(target.value))}
      />
      <${NumberInput} ...${{ ...attributes, min, max, step }} value=${value ?? usual} onChange=${change} />
    </div>
  `;
  return html`<${Field} ...${{ name, label, hint, error }}>${control}<//>`;
}

export function SelectField({ name, label, value, options, hint, error, onChange }) {
  const control = (attributes) => html`
    <select ...${attributes} value=${value} onChange=${({ target }) => onChange(target.value)}>
      ${options.map(([one, text]) => html`<option key=${one} value=${one} selected=${one === value}>${text}</option>`)}
    </select>
  `;
  return html`<${Field} ...${{ name, label, hint, error }}>${control}<//>`;
}

export function TextField({ name, label, value, placeholder, rows, error, hint, onChange }) {
  const control = (attributes) => html`
    <textarea
      ...${attributes}
      rows=${rows}
      placeholder=${placeholder}
      value=${value}
      onInput=${({ target }) => onChange(target.value)}
    ></textarea>
  `;
  return html`<${Field} ...${{ name, label, hint, error }}>${control}<//>`;
}

export function CheckField({ name, label, isOn, error, onChange }) {
  const id = `field-${name}`;
  return html`
    <div class=${`field ${error ? "is-wrong" : ""}`}>
      <label class="check">
        <input
          id=${id}
          type="checkbox"
          checked=${isOn}
          aria-describedby=${error ? `${id}-error` : undefined}
          onChange=${({ target }) => onChange(target.checked)}
        />
        <span>${label}</span>
      </label>
      ${error && html`<p id=${`${id}-error`} class="small problem">${error}</p>`}
    </div>
  `;
}
