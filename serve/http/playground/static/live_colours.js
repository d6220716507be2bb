// Colours of requests. live.css makes the colour from the hue: its lightness and chroma are the theme's, chosen so
// that the text on a bar has a contrast of at least 4.5 in every hue.

const NUM_HUES = 24;

/** {hue, isDeep}: the same for all images of a request. Every other colour is deeper, which tells neighbours apart. */
export function colourOf(id) {
  const number = Number.parseInt(id.slice(0, 8), 16) || 0;
  const place = number % NUM_HUES;
  return { hue: (place * 360) / NUM_HUES, isDeep: Math.floor(number / NUM_HUES) % 2 === 1 };
}
