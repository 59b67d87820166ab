// The official realtime client of Node.js, unmodified: node openai_realtime.mjs FOLDER_WITH_OPENAI_AND_WS URL KEY PCM_24_KHZ
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, baseURL, apiKey, sound] = process.argv.slice(2);
const load = createRequire(join(folder, "index.js"));
const { OpenAI } = load("openai");
const { OpenAIRealtimeWS } = load("openai/realtime/ws");
const client = new OpenAI({ baseURL, apiKey });
const realtime = new OpenAIRealtimeWS({ model: "miniature" }, client);
const found = { text: "", bytes: 0 };

realtime.on("error", (error) => {
  console.error(error);
  process.exit(1);
});
realtime.on("session.created", () => {
  const audio = { input: { turn_detection: { type: "server_vad" } } };
  realtime.send({ type: "session.update", session: { type: "realtime", instructions: "What number do you hear?", audio } });
});
realtime.on("session.updated", () => {
  const samples = readFileSync(sound);
  for (let start = 0; start < samples.length; start += 9600) {
    realtime.send({ type: "input_audio_buffer.append", audio: samples.subarray(start, start + 9600).toString("base64") });
  }
});
realtime.on("response.output_audio_transcript.delta", (event) => (found.text += event.delta));
realtime.on("response.output_audio.delta", (event) => (found.bytes += Buffer.from(event.delta, "base64").length));
realtime.on("response.done", (event) => {
  console.log(JSON.stringify({ ...found, status: event.response.status }));
  realtime.close();
});
