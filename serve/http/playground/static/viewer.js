// One picture, large, with its settings and what can be done with it.

import { getKey, url } from "./api.js";
import { CodeBox } from "./code_box.js";
import { Dialog } from "./dialogs.js";
import { Glyph } from "./glyphs.js";
import { Picture } from "./picture.js";
import { usePictureUrl } from "./pictures.js";
import { html, useState } from "./vendor/preact.js";
import { duration, when } from "./wording.js";

/**
 * record, index: which picture; before, after: {record, index} of those beside it, or null
 * actions: as in card.js, and {show(place), vary(record, index), startFrom(record, index), close()}
 */
export function Viewer({ record, index, before, after, actions }) {
  const path = record.outputs[index];
  const [size, setSize] = useState(null);
  const onKeyDown = (event) => {
    if (event.target.matches("input, select, textarea, pre")) return;
    const place = { ArrowLeft: before, ArrowRight: after }[event.key];
    if (!place) return;
    event.preventDefault();
    actions.show(place);
  };
  return html`
    <${Dialog} label="Picture" kind="viewer" onClose=${actions.close} onKeyDown=${onKeyDown}>
      <div class="viewer-picture">
        <${Picture}
          key=${path}
          path=${path}
          alt=${record.input.prompt}
          isLarge=${true}
          onSize=${setSize}
          onGone=${() => actions.gone(record)}
        />
        <${Turn} name="left" label="Newer picture" place=${before} actions=${actions} />
        <${Turn} name="right" label="Older picture" place=${after} actions=${actions} />
      </div>
      <div class="viewer-about">
        <h2 class="viewer-prompt">${record.input.prompt}</h2>
        <div class="viewer-actions">
          <button type="button" class="primary is-whole" onClick=${() => actions.again(record, index)}><${Glyph} name="again" />Use these again</button>
          <button type="button" onClick=${() => actions.vary(record)}><${Glyph} name="dice" />Vary the seed</button>
          <a class="button" href=${url(path)} download=${fileName(record, index, path)}><${Glyph} name="download" />Download</a>
          <button type="button" class="is-whole" onClick=${() => actions.startFrom(record, index)}>
            <${Glyph} name="picture" />Start from this picture
          </button>
        </div>
        <${Facts} ...${{ record, index, size }} />
        <details class="viewer-code">
          <summary>Copy as code</summary>
          <${CodeBox} asked=${record} server=${{ base: url("."), needsKey: getKey() !== null }} />
        </details>
        <button type="button" class="quiet danger" onClick=${() => actions.remove(record)}>
          <${Glyph} name="trash" />${record.outputs.length > 1 ? `Delete all ${record.outputs.length}` : "Delete"}
        </button>
      </div>
    <//>
  `;
}

function Turn({ name, label, place, actions }) {
  return html`
    <button
      type="button"
      class=${`icon turn is-${name}`}
      aria-label=${label}
      aria-disabled=${place ? undefined : "true"}
      onClick=${() => place && actions.show(place)}
    >
      <${Glyph} name=${name} />
    </button>
  `;
}

function Facts({ record, index, size }) {
  const { input, start } = record;
  const facts = [
    ["Model", record.model],
    ["Negative prompt", input.negative_prompt],
    ["Size", size && `${size.width}×${size.height}`],
    ["Steps", input.num_inference_steps],
    ["Guidance", guidance(input)],
    ["Sampler", input.scheduler],
    ["Seed", input.seed + index],
    ["LoRAs", input.loras?.map(({ id, scale }) => `${id} (${scale})`).join(", ")],
    ["Second pass", input.hires && `${input.hires.scale} times as large`],
    ["CLIP skip", input.clip_skip],
    ["Strength", input.prompt_strength],
    ["Deterministic", input.deterministic && "yes"],
    ["Made", when(record.createdAt)],
    ["Took", record.tookS && duration(record.tookS)],
  ];
  return html`
    <dl class="facts small">
      ${facts
        .filter(([, value]) => value !== undefined && value !== null && value !== "")
        .map(([name, value]) => html`<div key=${name}><dt class="muted">${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    ${start && html`<${StartPictures} start=${start} />`}
  `;
}

function StartPictures({ start }) {
  const [picture, mask] = [usePictureUrl(start.picture), usePictureUrl(start.mask)];
  if (!picture) return null;
  return html`
    <div class="start-pictures small">
      <span class="muted">Started from</span>
      <a href=${picture} download="start.png"><img src=${picture} alt="Download the picture it started from" /></a>
      ${mask && html`<a href=${mask} download="mask.png"><img src=${mask} alt="Download the mask" /></a>`}
    </div>
  `;
}

function guidance({ guidance_scale: scale, guidance_start: start, guidance_end: end }) {
  if (start === undefined && end === undefined) return scale;
  return `${scale}, from ${start ?? 0} to ${end ?? 1} of the steps`;
}

function fileName(record, index, path) {
  return `${record.id}-${index}.${path.split(".").at(-1)}`;
}
