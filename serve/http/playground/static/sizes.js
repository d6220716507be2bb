// The sizes that the form offers for a model.

const SHAPES = [
  ["Square", 1, 1],
  ["Portrait", 2, 3],
  ["Landscape", 3, 2],
  ["Tall", 9, 16],
  ["Wide", 16, 9],
];

/** [{name, width, height}] with about as many pixels as the model's own size, all within its limits. */
export function presets({ defaults, limits }) {
  const pixels = defaults.width * defaults.height;
  const sizes = SHAPES.map(([name, across, down]) => {
    const width = Math.sqrt((pixels * across) / down);
    return { name, ...fitted(width, (width * down) / across, limits) };
  });
  return sizes.filter(({ width, height }, at) => {
    const isNew = sizes.findIndex((one) => one.width === width && one.height === height) === at;
    return isNew && width * height <= limits.max_pixels;
  });
}

function fitted(width, height, limits) {
  return {
    width: multiple(width, limits.max_width, limits),
    height: multiple(height, limits.max_height, limits),
  };
}

function multiple(pixels, most, { min_size: least, size_multiple: factor }) {
  const rounded = Math.round(pixels / factor) * factor;
  const [low, high] = [Math.ceil(least / factor) * factor, Math.floor(most / factor) * factor];
  return Math.min(Math.max(rounded, low), high);
}
