// Sentences and figures as the page writes them.

const SHAPES = ["shapes", "outlines"]; // the embedded models, which know shapes and colours only
const EXAMPLES = {
  shapes: [
    "a large red star on a blue background",
    "a green circle left of a white square on a black background",
    "a yellow star on a purple background",
  ],
  any: [
    "a lighthouse on a cliff at dusk, warm light in its windows",
    "a bowl of ripe figs on a wooden table, oil painting",
    "a fox in fresh snow, morning light, photograph",
  ],
};

export function examplesOf(model) {
  return EXAMPLES[model && SHAPES.includes(model.id) ? "shapes" : "any"];
}

export function exampleOf(model) {
  return model ? examplesOf(model)[0] : "";
}

/** "4 s", "3 min" or "2 h" */
export function duration(seconds) {
  if (seconds < 10) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** What a prediction under way is doing. progress: as in follow.js; undefined before it is known */
export function stage(progress) {
  if (!progress) return "Waiting";
  const { fraction, position, etaS } = progress;
  const left = etaS === null ? "" : ` · ${duration(etaS)} left`;
  if (position === null) return `${Math.floor(fraction * 100)} %${left}`;
  return position > 0 ? `${position} before it${left}` : `Waiting${left}`;
}

export function when(milliseconds) {
  return new Date(milliseconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
