// Masks as PNGs: white is to be repainted, black is kept, and there is nothing in between.

const STRIP_ROWS = 256;
const MAX_PIXELS_AT_ONCE = 2 ** 21; // more than this is done in pieces, so that the page goes on

const WHITE = 0xffffffff;
const BLACK = 0xff000000;

/**
 * {url, share} of a mask: a data: URL of a PNG of the picture's size, and which part of it is white. url is null if
 * nothing is. A small one is done when this returns; of a large one it returns a promise, of null if the signal came.
 */
export function pngOf(mask, { width, height }, signal) {
  const out = document.createElement("canvas");
  Object.assign(out, { width, height });
  const strips = stripsOf(mask, out);
  return width * height <= MAX_PIXELS_AT_ONCE ? atOnce(strips, out) : inPieces(strips, out, signal);
}

/** The canvas of a PNG as a mask's: opaque where it is light. source: a data: or blob: URL */
export async function loadMask(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const { naturalWidth: width, naturalHeight: height } = image;
  const loaded = document.createElement("canvas");
  Object.assign(loaded, { width, height });
  const context = loaded.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, width, height);
  const bytes = data.data;
  for (let at = 0; at < bytes.length; at += 4) {
    bytes[at + 3] = (bytes[at] * 0.3 + bytes[at + 1] * 0.59 + bytes[at + 2] * 0.11) * (bytes[at + 3] / 255);
  }
  context.putImageData(data, 0, 0);
  return loaded;
}

function atOnce(strips, out) {
  let white = 0;
  for (const count of strips) white += count;
  return { url: white ? out.toDataURL("image/png") : null, share: white / (out.width * out.height) };
}

async function inPieces(strips, out, signal) {
  let white = 0;
  for (const count of strips) {
    white += count;
    await new Promise((resolve) => setTimeout(resolve));
    if (signal.aborted) return null;
  }
  const url = white ? await dataUrl(out) : null;
  return signal.aborted ? null : { url, share: white / (out.width * out.height) };
}

/** Writes the mask into `out`, strip after strip; yields how many pixels of each are white. */
function* stripsOf(mask, out) {
  const strip = document.createElement("canvas");
  Object.assign(strip, { width: out.width, height: Math.min(STRIP_ROWS, out.height) });
  const context = strip.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  const target = out.getContext("2d");
  for (let top = 0; top < out.height; top += STRIP_ROWS) {
    context.clearRect(0, 0, strip.width, strip.height);
    context.drawImage(mask, 0, -top, out.width, out.height);
    const data = context.getImageData(0, 0, strip.width, strip.height);
    yield blackAndWhite(data);
    target.putImageData(data, 0, top, 0, 0, strip.width, Math.min(STRIP_ROWS, out.height - top));
  }
}

function blackAndWhite(data) {
  const pixels = new Uint32Array(data.data.buffer);
  const bytes = data.data;
  let white = 0;
  for (let at = 0; at < pixels.length; at += 1) {
    const isWhite = bytes[4 * at + 3] >= 128;
    pixels[at] = isWhite ? WHITE : BLACK;
    white += isWhite;
  }
  return white;
}

function dataUrl(out) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    out.toBlob((blob) => reader.readAsDataURL(blob), "image/png");
  });
}
