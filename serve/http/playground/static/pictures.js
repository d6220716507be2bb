// Pictures to start from and masks, kept in this browser (IndexedDB), so that they can be used again.

import { useEffect, useState } from "./vendor/preact.js";

const DATABASE = "midstep";
const TABLE = "pictures";
const UNUSED_MS = 24 * 3600 * 1000;
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const instead = new Map(); // where the browser keeps nothing, until the page is closed

/** Keeps a Blob and answers with its id. */
export async function keepPicture(blob) {
  const id = newId();
  const kept = { blob, keptAt: Date.now() };
  await inTable("readwrite", (table) => table.put(kept, id)).catch(() => instead.set(id, kept));
  return id;
}

/** The Blob; null if it is not there. */
export async function pictureOf(id) {
  const kept = await inTable("readonly", (table) => table.get(id)).catch(() => null);
  return (kept ?? instead.get(id))?.blob ?? null;
}

export async function dropPictures(ids) {
  ids.forEach((id) => instead.delete(id));
  await inTable("readwrite", (table) => ids.forEach((id) => table.delete(id))).catch(() => {});
}

/** Drops what nothing has used for a day. used: ids */
export async function dropAllBut(used) {
  const dropOld = (table) => {
    table.openCursor().onsuccess = ({ target: { result: cursor } }) => {
      if (!cursor) return;
      if (!used.has(cursor.key) && Date.now() - cursor.value.keptAt > UNUSED_MS) cursor.delete();
      cursor.continue();
    };
  };
  await inTable("readwrite", dropOld).catch(() => {});
}

/** A hook: a blob: URL of the picture; null until it is read, and if there is none. */
export function usePictureUrl(id) {
  const [url, setUrl] = useState(null);
  useEffect(() => {
    setUrl(null);
    if (!id) return undefined;
    let made = null;
    let isOver = false;
    pictureOf(id).then((blob) => {
      if (isOver || !blob) return;
      made = URL.createObjectURL(blob);
      setUrl(made);
    });
    return () => {
      isOver = true;
      if (made) URL.revokeObjectURL(made);
    };
  }, [id]);
  return url;
}

/** A file as the server takes it, with its size in pixels. Other kinds become PNG. Throws if it is no picture. */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "This"} is not a picture that this browser can read.`);
  });
  const { width, height } = bitmap;
  const blob = SENT_AS_THEY_ARE.includes(file.type) ? file : await asPng(bitmap);
  bitmap.close();
  return { blob, width, height };
}

export function dataUrlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The Blob of a data: URL in base64. `fetch` would need another content security policy. */
export function blobOf(dataUrl) {
  const [head, text] = dataUrl.split(",");
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice("data:".length).split(";")[0] });
}

/** A random id. `crypto.randomUUID` is only there on https. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function asPng(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function inTable(mode, act) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(TABLE, mode);
      const asked = act(transaction.objectStore(TABLE));
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(DATABASE, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(TABLE);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
