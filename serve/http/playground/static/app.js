// The page: which tab is open, and what is over it.

import { isAborted } from "./api.js";
import { Composer } from "./composer.js";
import { Confirm, KeyDialog } from "./dialogs.js";
import { chosenModel, draft, modelOf, startFromOutput, useAgain } from "./draft.js";
import { follow } from "./follow.js";
import { Gallery, Newest } from "./gallery.js";
import { Banners, Header } from "./header.js";
import { cancel, make, remove, sending } from "./jobs.js";
import { LiveView } from "./live.js";
import { Notices, say } from "./notices.js";
import { server, watchServer } from "./server.js";
import { changeKey, closeKeyDialog, rereadKey, session } from "./session.js";
import { draftOf, inputOf, randomSeed } from "./settings.js";
import { isFinished, made, openStore, updateRecord } from "./store.js";
import { html, render, useEffect, useMemo, useState } from "./vendor/preact.js";
import { useValue, Value } from "./values.js";
import { Viewer } from "./viewer.js";

const TABS = ["make", "gallery", "live"];
const opened = new Value(null); // {id, index} of the picture in the viewer
const leaving = new Value(null); // id of what is to be deleted, once that is confirmed

function App() {
  const tab = useTab();
  const records = useValue(made);
  const mine = useMemo(() => new Map(records.map(({ liveId, input }) => [liveId, { label: input.prompt }])), [records]);
  useValue(server);
  useTitle(records);
  const model = chosenModel(useValue(draft));
  return html`
    <${Header} tab=${tab} />
    <${Banners} model=${model} />
    <main class=${`main is-${tab}`} id="main">
      ${tab === "make" && html`<${Composer} /><${Newest} model=${model} actions=${ACTIONS} />`}
      ${tab === "gallery" && html`<${Gallery} actions=${ACTIONS} />`}
      ${tab === "live" && html`<${LiveView} mine=${mine} />`}
    </main>
    <${Open} records=${records} />
    <${Leaving} records=${records} />
    <${Key} />
    <${Notices} />
  `;
}

/** What cards and the viewer can do. */
const ACTIONS = {
  open: ({ id }, index) => (opened.now = { id, index }),
  show: (place) => (opened.now = place),
  close: () => (opened.now = null),
  cancel: (record) => told(() => cancel(record.id)),
  remove: ({ id }) => (leaving.now = id),
  gone: ({ id }) => updateRecord(id, { status: "gone" }),
  again(record, index = 0) {
    const seed = record.input.seed + index;
    useAgain({ ...record, input: { ...record.input, seed } });
    opened.now = null;
    showForm("The settings are in the form.");
  },
  vary(record) {
    opened.now = null;
    location.hash = "make";
    const model = modelOf(record.model);
    if (!model) return say(`The model ${record.model} is no longer served.`, { isBad: true });
    const input = inputOf({ ...draftOf(record, model), seed: randomSeed() }, model);
    told(() => make({ model: record.model, input, start: record.start }));
  },
  startFrom: (record, index) =>
    told(async () => {
      await startFromOutput(record, index);
      opened.now = null;
      showForm("The next picture starts from this one.");
    }),
};

function Open({ records }) {
  const now = useValue(opened);
  if (!now) return null;
  const places = records.flatMap(({ id, status, outputs }) =>
    status === "gone" ? [] : outputs.map((_, index) => ({ id, index })),
  );
  const at = places.findIndex(({ id, index }) => id === now.id && index === now.index);
  if (at < 0) return null; // it was deleted, here or in another tab
  const record = records.find(({ id }) => id === now.id);
  const [before, after] = [places[at - 1] ?? null, places[at + 1] ?? null];
  return html`<${Viewer} index=${now.index} actions=${ACTIONS} ...${{ record, before, after }} />`;
}

function Leaving({ records }) {
  const id = useValue(leaving);
  const record = records.find((one) => one.id === id);
  if (!record) return null;
  const close = () => (leaving.now = null);
  const confirm = () => {
    close();
    const card = document.querySelector(`.card[data-id="${CSS.escape(id)}"]`);
    const beside = card?.nextElementSibling ?? card?.previousElementSibling;
    told(() => remove(id).then(() => giveFocus(beside)));
  };
  const what = record.outputs.length > 1 ? `these ${record.outputs.length} pictures` : "this picture";
  const text = isFinished(record)
    ? "It is deleted on the server too, and cannot be brought back."
    : "It is canceled, and deleted on the server too.";
  return html`<${Confirm} title=${`Delete ${what}?`} text=${text} action="Delete" onConfirm=${confirm} onClose=${close} />`;
}

function Key() {
  const now = useValue(session);
  return now.isAsking && html`<${KeyDialog} session=${now} onKey=${changeKey} onClose=${closeKeyDialog} />`;
}

function showForm(text) {
  const focus = () => requestAnimationFrame(() => document.getElementById("field-prompt")?.focus());
  if (tabOf(location.hash) === "make") focus();
  else addEventListener("hashchange", focus, { once: true }); // only then the form is drawn
  location.hash = "make";
  say(text);
}

/** Where the focus was on something that is gone, it goes on beside it. */
function giveFocus(element) {
  requestAnimationFrame(() => {
    if (document.activeElement === document.body) element?.querySelector("button")?.focus();
  });
}

/** Runs what may fail, and says so if it does. */
async function told(act) {
  try {
    await act();
  } catch (error) {
    if (!isAborted(error)) say(error.message, { isBad: true });
  }
}

function useTab() {
  const [tab, setTab] = useState(tabOf(location.hash));
  useEffect(() => {
    const change = () => setTab(tabOf(location.hash));
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return tab;
}

function tabOf(hash) {
  return TABS.find((id) => hash === `#${id}`) ?? "make";
}

function useTitle(records) {
  const count = records.filter((record) => !isFinished(record)).length + useValue(sending).length;
  useEffect(() => {
    document.title = count ? `(${count}) Midstep` : "Midstep";
  }, [count]);
}

openStore(rereadKey);
watchServer();
follow();
render(html`<${App} />`, document.getElementById("app"));
