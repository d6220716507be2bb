// The settings that are being written in the form. Kept, so that they are there again after the page is closed.

import { url } from "./api.js";
import { keepPicture, readPicture } from "./pictures.js";
import { server } from "./server.js";
import { draftOf, mendedDraft } from "./settings.js";
import { keepDraft, keptDraft } from "./store.js";
import { Value } from "./values.js";

export const draft = new Value(mendedDraft(keptDraft()));

export function edit(changes) {
  draft.now = { ...draft.now, ...changes };
  keepDraft(draft.now);
}

/** The served model of that id; null if there is none. */
export function modelOf(id) {
  return server.now.models.find((model) => model.id === id) ?? null;
}

/** The model that the form is for. */
export function chosenModel({ model }) {
  return modelOf(model) ?? server.now.models[0] ?? null;
}

/** Fills the form with a record's settings. */
export function useAgain(record) {
  edit({ ...draftOf(record, modelOf(record.model)), isSeedKept: draft.now.isSeedKept });
}

/** Makes a file the picture to start from. Throws if it is none. */
export async function startFromFile(file, name = file.name || "A pasted picture") {
  const { blob, width, height } = await readPicture(file);
  const picture = await keepPicture(blob);
  const start = { picture, mask: null, name, width, height };
  edit({ start, width: null, height: null, isOwnSize: false });
}

/** Makes a record's picture the one to start from. */
export async function startFromOutput({ input, outputs }, index) {
  const path = outputs[index];
  const response = await fetch(url(path)).catch(() => {
    // It is away for a moment, or its pictures are on another host, which the page may show but not read.
    throw new Error("The picture could not be read. Download it, and choose the file to start from.");
  });
  if (!response.ok) throw new Error("The picture is no longer kept.");
  const blob = await response.blob();
  await startFromFile(blob, input.prompt);
}
