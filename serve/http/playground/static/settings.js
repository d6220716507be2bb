// Settings of a picture: as they are written in the form (a draft), and as the server takes them (an input).

const MAX_RANDOM_SEED = 2 ** 32;

/** A draft in which everything is the model's own: null stands for its default. */
const EMPTY = {
  model: null,
  prompt: "",
  negative: null,
  width: null,
  height: null,
  isOwnSize: false, // whether width and height are shown as numbers
  count: 1,
  steps: null,
  guidance: null,
  sampler: null,
  seed: null,
  isSeedKept: false,
  loras: [], // {id, scale}
  start: null, // {picture, mask (ids in pictures.js, the mask's may be null), name, width, height}
  strength: null,
  isRestKept: true,
  guidanceStart: null,
  guidanceEnd: null,
  clipSkip: null,
  hires: null,
  isDeterministic: false,
};

const FITS = {
  loras: (value) => Array.isArray(value) && value.every((one) => typeof one?.id === "string"),
  start: (value) => typeof value?.picture === "string",
};

/** The draft that was kept, without what does not fit: it may be of another version, or damaged. */
export function mendedDraft(kept) {
  const isKept = ([name]) => (FITS[name] ?? ((value) => isLike(value, EMPTY[name])))(kept?.[name]);
  const names = Object.entries(EMPTY).filter(isKept);
  return { ...EMPTY, ...Object.fromEntries(names.map(([name]) => [name, kept[name]])) };
}

/** Whether a value may stand in a draft where an empty one has the other. */
function isLike(value, empty) {
  return empty === null ? ["string", "number"].includes(typeof value) : typeof value === typeof empty;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % MAX_RANDOM_SEED;
}

/** The strength that a draft has without one of its own, as the server has it. */
export function defaultStrength(start) {
  return start?.mask ? 1 : 0.8;
}

/** The input of a prediction, without its pictures. All defaults are written out, so that it means the same later. */
export function inputOf(draft, model) {
  const { defaults } = model;
  const size = draft.width === null && draft.height === null && draft.start ? [null, null] : sizeOf(draft, model);
  return withoutNulls({
    prompt: draft.prompt,
    negative_prompt: draft.negative ?? defaults.negative_prompt ?? null,
    width: size[0],
    height: size[1],
    num_outputs: draft.count,
    num_inference_steps: draft.steps ?? defaults.num_inference_steps,
    guidance_scale: draft.guidance ?? defaults.guidance_scale,
    guidance_start: draft.guidanceStart,
    guidance_end: draft.guidanceEnd,
    scheduler: draft.sampler ?? defaults.sampler,
    seed: draft.seed ?? randomSeed(),
    clip_skip: draft.clipSkip,
    hires: draft.hires === null ? null : { scale: draft.hires },
    deterministic: draft.isDeterministic || null,
    loras: draft.loras.length ? draft.loras : null,
    prompt_strength: draft.start && (draft.strength ?? defaultStrength(draft.start)),
    preserve_unmasked: draft.start?.mask ? draft.isRestKept : null,
  });
}

/** The draft of an input, where what is the model's default is null again. model: null if it is served no more */
export function draftOf({ input, model: id, start }, model) {
  const defaults = model?.defaults ?? {};
  const unlessDefault = (value, usual) => (value === undefined || value === usual ? null : value);
  const isUsualSize = !start && input.width === defaults.width && input.height === defaults.height;
  return {
    ...EMPTY,
    model: id,
    prompt: input.prompt,
    negative: unlessDefault(input.negative_prompt, defaults.negative_prompt),
    width: isUsualSize ? null : (input.width ?? null),
    height: isUsualSize ? null : (input.height ?? null),
    count: input.num_outputs ?? 1,
    steps: unlessDefault(input.num_inference_steps, defaults.num_inference_steps),
    guidance: unlessDefault(input.guidance_scale, defaults.guidance_scale),
    sampler: unlessDefault(input.scheduler, defaults.sampler),
    seed: input.seed ?? null,
    loras: input.loras ?? [],
    start: start ?? null,
    strength: unlessDefault(input.prompt_strength, defaultStrength(start)),
    isRestKept: input.preserve_unmasked ?? true,
    guidanceStart: input.guidance_start ?? null,
    guidanceEnd: input.guidance_end ?? null,
    clipSkip: input.clip_skip ?? null,
    hires: input.hires?.scale ?? null,
    isDeterministic: input.deterministic ?? false,
  };
}

function sizeOf(draft, model) {
  return [draft.width ?? model.defaults.width, draft.height ?? model.defaults.height];
}

function withoutNulls(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== null));
}
