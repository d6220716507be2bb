// What this browser keeps: the pictures that it made, the settings that are being written, the theme.
// Tabs share it: each record has a key of its own, so that two of them never write over each other.

import { KEY } from "./api.js";
import { dropAllBut, dropPictures } from "./pictures.js";
import { dropText, keepText, keptKeys, keptText } from "./storage.js";
import { Value } from "./values.js";

const MADE = "midstep.made.";
const DRAFT = "midstep.draft";
const THEME = "midstep.theme";
const MAX_MADE = 1000;

/**
 * Records of what was asked for, the newest first:
 * {id, liveId, createdAt (ms), status, model, input, outputs (paths), error, start (see settings.js), tookS}
 * status: as the server's, or "gone" where it is no longer kept
 */
export const made = new Value([]);
export const theme = new Value("auto");

export function isFinished(record) {
  return !["starting", "processing"].includes(record.status);
}

export function addRecord(record) {
  writeRecord(record);
  showMade([record, ...made.now.filter((one) => one.id !== record.id)]);
  for (const old of made.now.slice(MAX_MADE).filter(isFinished)) removeRecord(old.id);
}

/** Changes fields of a record, if it is still there. */
export function updateRecord(id, changes) {
  const record = made.now.find((one) => one.id === id);
  if (!record || Object.entries(changes).every(([name, value]) => same(record[name], value))) return;
  const changed = { ...record, ...changes };
  writeRecord(changed);
  showMade(made.now.map((one) => (one.id === id ? changed : one)));
}

export function removeRecord(id) {
  const record = made.now.find((one) => one.id === id);
  dropText(MADE + id);
  showMade(made.now.filter((one) => one.id !== id));
  if (record?.start) dropUnused([record.start.picture, record.start.mask]);
}

/** The kept draft; null if there is none. */
export function keptDraft() {
  return read(DRAFT);
}

export function keepDraft(draft) {
  keepText(DRAFT, JSON.stringify(draft));
}

export function chooseTheme(name) {
  if (name === "auto") dropText(THEME);
  else keepText(THEME, name);
  showTheme();
}

/** Reads everything, and follows what other tabs write. onKey: called when another tab changes the API key */
export function openStore(onKey) {
  readMade();
  showTheme();
  dropAllBut(usedPictures());
  addEventListener("storage", ({ key }) => {
    if (key === null || key.startsWith(MADE)) readMade();
    if (key === null || key === THEME) showTheme();
    if (key === null || key === KEY) onKey();
  });
}

function readMade() {
  const keys = keptKeys().filter((key) => key.startsWith(MADE));
  showMade(keys.map(read).filter(isRecord));
}

/** Whether it is a record that this page can show: it may be of another version, or damaged. */
function isRecord(one) {
  return (
    typeof one?.id === "string" &&
    typeof one.status === "string" &&
    typeof one.input?.prompt === "string" &&
    Array.isArray(one.outputs) &&
    one.outputs.every((path) => typeof path === "string")
  );
}

function showMade(records) {
  made.now = records.sort((one, other) => other.createdAt - one.createdAt);
}

function showTheme() {
  const chosen = keptText(THEME);
  theme.now = chosen === "dark" || chosen === "light" ? chosen : "auto";
  if (theme.now === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.now;
}

function dropUnused(ids) {
  const used = usedPictures();
  dropPictures(ids.filter((id) => id && !used.has(id)));
}

function usedPictures() {
  return new Set([keptDraft(), ...made.now].flatMap((one) => [one?.start?.picture, one?.start?.mask]));
}

function read(key) {
  try {
    return JSON.parse(keptText(key));
  } catch {
    return null; // written by something else
  }
}

/** Where there is no more room, the oldest records make way. */
function writeRecord(record) {
  const text = JSON.stringify(record);
  while (!keepText(MADE + record.id, text)) {
    const oldest = made.now.filter((one) => isFinished(one) && one.id !== record.id).at(-1);
    if (!oldest) return;
    removeRecord(oldest.id);
  }
}

function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}
