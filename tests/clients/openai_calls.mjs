// OpenAI's client for JavaScript.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { MASK, PICTURE } from "./pictures.mjs";

const root = process.env.MIDSTEP_URL;
const client = new OpenAI({ baseURL: `${root}/v1`, apiKey: "any", maxRetries: 0 });
const asked = { prompt: "a red star on a blue background", num_inference_steps: 2 };
const PNG = Buffer.from("89504e47", "hex");

function assertPng(data) {
  assert.deepEqual(Buffer.from(data).subarray(0, 4), PNG);
}

test("a plain answer", async () => {
  const answer = await client.images.generate({ ...asked, model: "shapes", n: 2, size: "128x128" });
  assert.equal(answer.data.length, 2);
  answer.data.forEach((item) => assertPng(Buffer.from(item.b64_json, "base64")));
});

test("a URL", async () => {
  const answer = await client.images.generate({ ...asked, response_format: "url" });
  assertPng(await (await fetch(answer.data[0].url)).arrayBuffer());
});

for (const given of [{ model: "gpt-image-1" }, { model: "dall-e-3", quality: "hd", style: "vivid" }]) {
  test(`as its users ask: ${JSON.stringify(given)}`, async () => {
    const answer = await client.images.generate({ ...asked, ...given });
    assertPng(Buffer.from(answer.data[0].b64_json, "base64"));
  });
}

for (const previews of [0, 2]) {
  test(`a stream with ${previews} previews`, async () => {
    const given = { ...asked, num_inference_steps: 6, stream: true, partial_images: previews };
    const types = [];
    for await (const event of await client.images.generate(given)) types.push(event.type);
    const partial = Array(previews).fill("image_generation.partial_image");
    assert.deepEqual(types, [...partial, "image_generation.completed"]);
  });
}

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ["shapes", "outlines"]);
  assert.equal((await client.models.retrieve("shapes")).id, "shapes");
});

test("refusals name the field", async () => {
  await assert.rejects(client.images.generate({ ...asked, size: "1024x1024" }), (error) => {
    assert(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "size");
    return true;
  });
  await assert.rejects(client.images.generate({ ...asked, model: "sdxl" }), OpenAI.NotFoundError);
});

test("an edit, a masked one, and a variation", async () => {
  const image = await toFile(PICTURE, "red.png", { type: "image/png" });
  const mask = await toFile(MASK, "mask.png", { type: "image/png" });
  for (const given of [{}, { mask }, { mask, n: 2 }]) {
    const answer = await client.images.edit({ ...asked, image, ...given });
    answer.data.forEach((item) => assertPng(Buffer.from(item.b64_json, "base64")));
  }
  const varied = await client.images.createVariation({ image, num_inference_steps: 2 });
  assertPng(Buffer.from(varied.data[0].b64_json, "base64"));
  const any = await toFile(Buffer.from("any"), "red.png", { type: "image/png" });
  await assert.rejects(client.images.edit({ image: any, prompt: asked.prompt }), /no PNG, JPEG or WebP file/);
});
