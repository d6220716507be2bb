// Replicate's client for JavaScript.
import assert from "node:assert/strict";
import { test } from "node:test";
import Replicate from "replicate";
import { PICTURE } from "./pictures.mjs";

const client = new Replicate({ baseUrl: `${process.env.MIDSTEP_URL}/v1`, auth: "any" });
const model = "midstep/shapes";
const input = { prompt: "a red star on a blue background", num_inference_steps: 2 };
const PNG = Buffer.from("89504e47", "hex");

// Outputs are plain strings, since it makes files of https:// URLs only.
async function assertPictures(outputs, count = 1) {
  assert.equal(outputs.length, count);
  for (const output of outputs) {
    const data = await (await fetch(String(output))).arrayBuffer();
    assert.deepEqual(Buffer.from(data).subarray(0, 4), PNG);
  }
}

async function refusal(promise) {
  let found;
  await assert.rejects(promise, (error) => ((found = error), true));
  return { status: found.response.status, message: found.message };
}

for (const ref of [model, `${model}:shapes`]) {
  test(`run ${ref}`, async () => {
    await assertPictures(await client.run(ref, { input: { ...input, num_outputs: 2 } }), 2);
  });
}

test("run by polling, with progress", async () => {
  const seen = [];
  const options = { input, wait: { mode: "poll", interval: 100 } };
  await assertPictures(await client.run(model, options, (prediction) => seen.push(prediction.status)));
  assert.equal(seen.at(-1), "succeeded");
});

test("stream", async () => {
  const events = [];
  for await (const event of client.stream(model, { input })) events.push(event);
  await assertPictures(events.filter((event) => event.event === "output").map((event) => event.data));
  assert.equal(events.at(-1).event, "done");
});

test("predictions", async () => {
  const created = await client.predictions.create({ version: "shapes", input });
  const done = await client.wait(created, { interval: 100 });
  assert.equal(done.status, "succeeded");
  assert.deepEqual((await client.predictions.get(created.id)).output, done.output);
  const ids = [];
  for await (const page of client.paginate(client.predictions.list)) {
    ids.push(...page.map((prediction) => prediction.id));
  }
  assert(ids.includes(created.id));
});

test("cancel", async () => {
  const long = { ...input, num_inference_steps: 100, num_outputs: 8 };
  const created = await client.predictions.create({ model, input: long });
  assert.equal((await client.predictions.cancel(created.id)).status, "canceled");
});

test("models", async () => {
  assert.deepEqual((await client.models.list()).results.map((one) => one.name), ["shapes", "outlines"]);
  assert.equal((await client.models.get("midstep", "shapes")).owner, "midstep");
  const versions = await client.models.versions.list("midstep", "shapes");
  assert.deepEqual(versions.results.map((version) => version.id), ["shapes"]);
  assert.equal((await client.models.versions.get("midstep", "shapes", "shapes")).id, "shapes");
  assert.equal((await refusal(client.models.get("stability-ai", "sdxl"))).status, 404);
});

test("files", async () => {
  const given = await client.files.create(new Blob(["any"], { type: "text/plain" }), { order: 7 });
  assert.equal(given.size, 3);
  assert.equal(await (await fetch(given.urls.get)).text(), "any");
  assert.equal((await client.files.get(given.id)).id, given.id);
  assert((await client.files.list()).results.some((file) => file.id === given.id));
  assert(await client.files.delete(given.id));
  assert.equal((await refusal(client.files.get(given.id))).status, 404);
});

// With "data-uri" this version sends its own fields for the input.
for (const fileEncodingStrategy of ["upload", "default"]) {
  test(`a picture in the input: ${fileEncodingStrategy}`, async () => {
    const other = new Replicate({ baseUrl: client.baseUrl, auth: "any", fileEncodingStrategy });
    const given = { ...input, image: new Blob([PICTURE], { type: "image/png" }), prompt_strength: 0.5 };
    await assertPictures(await other.run(model, { input: given }));
    const any = { ...input, image: new Blob(["any"], { type: "image/png" }) };
    const answer = await refusal(other.run(model, { input: any }));
    assert.equal(answer.status, 422);
    assert.match(answer.message, /no PNG, JPEG or WebP file/);
  });
}

test("account and hardware", async () => {
  assert.equal((await client.accounts.current()).type, "user");
  assert.deepEqual((await client.hardware.list()).map((hardware) => hardware.sku), ["cpu"]);
});

test("the secret of webhooks is told to clients with keys", async () => {
  assert.equal((await refusal(client.webhooks.default.secret.get())).status, 403);
});

test("refusals", async () => {
  assert.equal((await refusal(client.run(model, { input: { ...input, width: 4096 } }))).status, 422);
  assert.equal((await refusal(client.collections.list())).status, 404);
});
