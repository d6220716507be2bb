// A request of the page as code, for those who want to go on from it. Pure functions.
//
// asked: {model, input, start}, as in a record; server: {base: URL with a slash at its end, needsKey}

const PLACEHOLDER = "YOUR_API_KEY";
const PICTURE = "start.png";
const MASK = "mask.png";

/** A command with curl: the same prediction as the page's. Its answer has the pictures' URLs. */
export function asCurl({ model, input, start }, { base, needsKey }) {
  const lines = [
    `curl -s ${shell(`${base}v1/predictions`)}`,
    ...(needsKey ? [`-H ${shell(`Authorization: Bearer ${PLACEHOLDER}`)}`] : []),
    "-H 'Content-Type: application/json' -H 'Prefer: wait=60'",
  ];
  if (!start) return [...lines, `-d ${shell(json({ version: model, input }))}`].join(" \\\n  ");
  // Pictures are too long for an argument, so the body goes through standard input.
  const body = hereDocument(json({ version: model, input: { ...input, ...markers(start) } }));
  const withFiles = body.replace(MARKER, (_, file) => `data:image/png;base64,$(base64 < ${file} | tr -d '\\n')`);
  return `${[...lines, "-d @- <<END"].join(" \\\n  ")}\n${withFiles}\nEND`;
}

/** A program with OpenAI's client. */
export function asOpenAi({ model, input, start }, { base, needsKey }) {
  const { prompt, width, height, num_outputs: count, scheduler, prompt_strength: strength, ...rest } = input;
  const others = { ...rest, sampler: scheduler, ...(start && { strength }) };
  const named = [
    ...(start ? [`image=open("${PICTURE}", "rb")`] : []),
    ...(start?.mask ? [`mask=open("${MASK}", "rb")`] : []),
    `model=${python(model)}`,
    `prompt=${python(prompt)}`,
    `n=${python(count)}`,
    ...(width && height ? [`size=${python(`${width}x${height}`)}`] : []),
    `extra_body=${python(others, "    ")}`,
  ];
  return `import base64

from openai import OpenAI

client = OpenAI(base_url=${python(`${base}v1`)}, api_key=${python(needsKey ? PLACEHOLDER : "none")})
answer = client.images.${start ? "edit" : "generate"}(
${named.map((one) => `    ${one},\n`).join("")})
for index, picture in enumerate(answer.data):
    with open(f"picture-{index}.png", "wb") as file:
        file.write(base64.b64decode(picture.b64_json))
`;
}

/** A program with Replicate's client. */
export function asReplicate({ model, input, start }, { base, needsKey }) {
  const name = model.includes("/") ? model : `midstep/${model}`;
  const given = python({ ...input, ...(start && markers(start)) }, "    ");
  const withFiles = given.replace(QUOTED_MARKER, (_, file) => `open("${file}", "rb")`);
  return `import urllib.request

import replicate

client = replicate.Client(api_token=${python(needsKey ? PLACEHOLDER : "none")}, base_url=${python(base.replace(/\/$/, ""))})
urls = client.run(
    ${python(name)},
    input=${withFiles},
)
for index, url in enumerate(urls):
    urllib.request.urlretrieve(str(url), f"picture-{index}.png")
`;
}

// Stands for a file until the text around it is escaped, by a letter of private use that prompts do not have.
const MARKER = /\ue000(start\.png|mask\.png)\ue000/g;
const QUOTED_MARKER = /"\ue000(start\.png|mask\.png)\ue000"/g;

function markers(start) {
  const marked = (file) => `\ue000${file}\ue000`;
  return { image: marked(PICTURE), ...(start.mask && { mask: marked(MASK) }) };
}

function json(value) {
  return JSON.stringify(value, null, 2);
}

/** A text as one word of a shell. */
function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A text as lines of a shell's here-document, in which commands are run. */
function hereDocument(text) {
  return text.replace(/[\\$`]/g, "\\$&");
}

/** A value of JSON as Python writes it. JSON's texts are Python's too. */
function python(value, indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  const inner = `${indent}    `;
  const items = Object.entries(value).map(([key, one]) => `${inner}${JSON.stringify(key)}: ${python(one, inner)},\n`);
  return items.length ? `{\n${items.join("")}${indent}}` : "{}";
}
