// The official client of Node.js, unmodified: node openai_client.mjs FOLDER_WITH_OPENAI URL KEY STAR_JPG DIGITS_WAV
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, baseURL, apiKey, star, digits] = process.argv.slice(2);
const { OpenAI } = createRequire(join(folder, "index.js"))("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const base64 = (path) => readFileSync(path).toString("base64");
const model = "miniature";
const shape = [
  {
    role: "user",
    content: [
      { type: "text", text: "What shape is it?" },
      { type: "image_url", image_url: { url: `data:image/jpeg;base64,${base64(star)}` } },
    ],
  },
];
const number = [
  {
    role: "user",
    content: [
      { type: "input_audio", input_audio: { data: base64(digits), format: "wav" } },
      { type: "text", text: "What number is spoken?" },
    ],
  },
];
const speech = { modalities: ["text", "audio"], audio: { voice: "Ethan", format: "pcm16" }, seed: 3 };
const found = {};

found.chat = (await client.chat.completions.create({ model, messages: shape })).choices[0].message.content;

found.stream = "";
for await (const chunk of await client.chat.completions.create({ model, messages: shape, stream: true })) {
  found.stream += chunk.choices[0].delta.content ?? "";
}

const spoken = (await client.chat.completions.create({ model, messages: number, ...speech })).choices[0].message.audio;
found.transcript = spoken.transcript;
const pieces = [];
for await (const chunk of await client.chat.completions.create({ model, messages: number, ...speech, stream: true })) {
  const data = chunk.choices[0].delta.audio?.data;
  if (data) pieces.push(Buffer.from(data, "base64"));
}
const whole = Buffer.from(spoken.data, "base64");
found.same = whole.length > 24000 && whole.equals(Buffer.concat(pieces));

const turns = [...number, { role: "assistant", audio: { id: spoken.id } }, ...shape];
found.later = (await client.chat.completions.create({ model, messages: turns })).choices[0].message.content;

try {
  await client.chat.completions.create({ model, messages: [], n: 1 });
} catch (error) {
  found.refused = [error.constructor.name, error.status, error.param];
}
console.log(JSON.stringify(found));
