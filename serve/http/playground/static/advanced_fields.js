// Settings that few need.

import { CheckField, NumberField, SelectField } from "./fields.js";
import { html } from "./vendor/preact.js";

const ENLARGEMENTS = [
  ["", "No"],
  ["1.5", "Enlarged 1.5 times"],
  ["2", "Enlarged 2 times"],
];
const FIELDS = ["guidance_start", "guidance_end", "clip_skip", "hires", "deterministic"];

export function AdvancedFields({ draft, errors, onChange }) {
  const isOpen = FIELDS.some((name) => errors[name]) || undefined;
  const fraction = { min: "0", max: "1", step: "0.05" };
  return html`
    <details class="advanced" open=${isOpen}>
      <summary>Advanced</summary>
      <div class="stack">
        <${SelectField}
          name="hires"
          label="Second pass"
          hint="Draws the finished picture again in a larger size."
          options=${ENLARGEMENTS}
          value=${draft.hires === null ? "" : String(draft.hires)}
          error=${errors.hires}
          onChange=${(scale) => onChange({ hires: scale === "" ? null : Number(scale) })}
        />
        <${NumberField}
          name="guidance_start"
          label="Guidance from"
          ...${fraction}
          value=${draft.guidanceStart}
          usual=${0}
          error=${errors.guidance_start}
          onChange=${(guidanceStart) => onChange({ guidanceStart })}
        />
        <${NumberField}
          name="guidance_end"
          label="Guidance until"
          hint="The share of the steps with guidance; others take half the time."
          ...${fraction}
          value=${draft.guidanceEnd}
          usual=${1}
          error=${errors.guidance_end}
          onChange=${(guidanceEnd) => onChange({ guidanceEnd })}
        />
        <${NumberField}
          name="clip_skip"
          label="CLIP skip"
          hint="Last layers of the text encoder that are left out."
          min="0"
          max="11"
          slidesTo="4"
          value=${draft.clipSkip}
          usual=${0}
          error=${errors.clip_skip}
          onChange=${(clipSkip) => onChange({ clipSkip })}
        />
        <${CheckField}
          name="deterministic"
          label="The same bytes each time (deterministic)"
          isOn=${draft.isDeterministic}
          error=${errors.deterministic}
          onChange=${(isDeterministic) => onChange({ isDeterministic })}
        />
      </div>
    </details>
  `;
}
