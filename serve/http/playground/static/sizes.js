// The sizes that the form offers for a model.

const SHAPES = [
  ["Square", 1, 1],
  ["Portrait", 2, 3],
  ["Landscape", 3, 2],
  ["Tall", 9, 16],
  ["Wide", 16, 9],
];
const LARGE_PX = 512;
const LARGE_MULTIPLE = 64; // large models were trained on such sizes

/** [{name, width, height}] with about as many pixels as the model's own size, all within its limits. */
export function presets({ defaults, limits }) {
  const { width: usualWidth, height: usualHeight } = defaults;
  const isLarge = Math.min(usualWidth, usualHeight) >= LARGE_PX && LARGE_MULTIPLE % limits.size_multiple === 0;
  const factor = isLarge ? LARGE_MULTIPLE : limits.size_multiple;
  const sizes = SHAPES.map(([name, across, down]) => {
    const width = Math.sqrt((usualWidth * usualHeight * across) / down);
    return { name, ...fitted(width, (width * down) / across, factor, limits) };
  });
  return sizes.filter(
    ({ width, height }, at) => sizes.findIndex((one) => one.width === width && one.height === height) === at,
  );
}

/** The width and height of a draft after a change of the model: the same shape, or the new model's own. */
export function carriedSize({ width, height }, from, to) {
  const name = presets(from).find((one) => one.width === width && one.height === height)?.name;
  const size = presets(to).find((one) => one.name === name);
  const isUsual = !size || (size.width === to.defaults.width && size.height === to.defaults.height);
  return isUsual ? { width: null, height: null } : { width: size.width, height: size.height };
}

/** The size that a picture to start from gets, as the server has it: its own, within the limits. */
export function sizeFrom({ width, height }, { min_size, max_width, max_height, max_pixels, size_multiple: factor }) {
  const least = Math.ceil(min_size / factor) * factor;
  const scale = Math.min(
    Math.max(1, least / Math.min(width, height)),
    max_width / width,
    max_height / height,
    Math.sqrt(max_pixels / (width * height)),
  );
  const side = (pixels) => Math.floor(Number((pixels * scale).toFixed(6)) / factor) * factor;
  return { width: side(width), height: side(height) };
}

function fitted(width, height, factor, limits) {
  let [across, down] = [
    multiple(width, factor, limits.min_size, limits.max_width),
    multiple(height, factor, limits.min_size, limits.max_height),
  ];
  while (across * down > limits.max_pixels) {
    if (across > down) across -= factor;
    else down -= factor;
  }
  return { width: across, height: down };
}

function multiple(pixels, factor, least, most) {
  const rounded = Math.round(pixels / factor) * factor;
  return Math.min(Math.max(rounded, Math.ceil(least / factor) * factor), Math.floor(most / factor) * factor);
}
