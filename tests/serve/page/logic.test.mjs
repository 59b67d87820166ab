// The page's logic without a browser: `node --test`. test_page.py copies it beside the page's modules.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Answer } from "./answer.js";
import { blocksOf, spansOf } from "./blocks.js";
import { Resampler } from "./capture-worklet.js";
import { languageOf, words } from "./i18n.js";
import * as pcm from "./pcm.js";
import { PlayQueue } from "./player-worklet.js";
import { EventParser, eventsOf } from "./sse.js";

const sine = (hz, rate, count) => Float32Array.from({ length: count }, (_, i) => Math.sin((2 * Math.PI * hz * i) / rate));
const loudest = (samples) => samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
const ramp = (count) => Int16Array.from({ length: count }, (_, i) => i + 1);

test("samples of 16 bits go to base64 and back, and are clipped", () => {
  assert.deepEqual([...pcm.toInt16([0, 0.5, 1, -1, 3, -3])], [0, 16384, 32767, -32768, 32767, -32768]);
  const samples = Int16Array.from({ length: 30000 }, (_, i) => (i * 7919) % 65536);
  assert.deepEqual(pcm.samplesOfBase64(pcm.toBase64(samples)), samples);
  assert.equal(pcm.toBase64(samples.subarray(1, 3)), Buffer.from(samples.slice(1, 3).buffer).toString("base64"));
  assert.throws(() => pcm.samplesOfBase64("AAAA"), /3 bytes: expected an even number/);
});

test("a WAV file says what it holds", () => {
  const bytes = Buffer.from(pcm.toWav(ramp(5), 16000));
  assert.equal(bytes.length, 54);
  assert.equal(bytes.toString("latin1", 0, 4) + bytes.toString("latin1", 8, 16), "RIFFWAVEfmt ");
  assert.deepEqual([bytes.readUInt32LE(4), bytes.readUInt32LE(24), bytes.readUInt32LE(40)], [46, 16000, 10]);
  assert.equal(bytes.readInt16LE(52), 5);
});

for (const [from, to] of [[48000, 24000], [44100, 24000], [48000, 16000], [44100, 16000], [24000, 24000], [16000, 24000]]) {
  test(`${from} Hz becomes ${to} Hz`, () => {
    const input = sine(1000, from, from);
    const out = new Resampler(from, to).process(input);
    assert.ok(Math.abs(out.length - to) < 60, `${out.length} samples of a second`);
    const wanted = sine(1000, to, out.length);
    const wrong = loudest(out.slice(200).map((sample, i) => sample - wanted[200 + i]));
    assert.ok(wrong < 0.01, `differs by ${wrong}`);

    const pieces = new Resampler(from, to);
    const joined = [];
    for (let at = 0; at < input.length; at += 128) joined.push(...pieces.process(input.subarray(at, at + 128)));
    assert.deepEqual(Float32Array.from(joined), out);

    if (to < from) {
      const above = new Resampler(from, to).process(sine(to * 0.6, from, from / 4));
      assert.ok(loudest(above.slice(200)) < 0.003, "a tone above the new Nyquist frequency is gone");
    }
  });
}

test("server-sent events in any pieces", () => {
  const text = ': hello\r\ndata: {"a":"ü"}\r\n\r\nevent: x\ndata: 1\ndata:2\n\n\n\ndata: [DONE]\n\n';
  for (const size of [1, 2, 3, 7, text.length]) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < text.length; at += size) events.push(...parser.push(text.slice(at, at + size)));
    assert.deepEqual(events, ['{"a":"ü"}', "1\n2", "[DONE]"], `pieces of ${size}`);
  }
});

test("a stream that ends before [DONE] is an error, letters may be split", async () => {
  const bytes = new TextEncoder().encode('data: {"a":"橙色"}\n\n');
  const body = new ReadableStream({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  });
  const seen = [];
  await assert.rejects(async () => {
    for await (const event of eventsOf(body)) seen.push(event);
  }, /ended in the middle/);
  assert.deepEqual(seen, [{ a: "橙色" }]);
});

test("an answer adds up", () => {
  const answer = new Answer(1000);
  const delta = (part, now, more = {}) => answer.add({ choices: [{ index: 0, delta: part, ...more }] }, now);
  assert.equal(delta({ role: "assistant", content: "" }, 1010), null);
  assert.equal(answer.firstToken, null);
  delta({ reasoning_content: "hm" }, 1050);
  delta({ audio: { id: "audio_1", transcript: "A red" } }, 1100);
  delta({ audio: { transcript: " star" } }, 1200);
  const samples = delta({ audio: { data: pcm.toBase64(new Int16Array(12000)) } }, 1300);
  assert.equal(samples.length, 12000);
  delta({ audio: { data: pcm.toBase64(new Int16Array(12000)) } }, 1400);
  delta({ audio: { expires_at: 5 } }, 1401);
  delta({ tool_calls: [{ index: 0, id: "c1", function: { name: "look", arguments: '{"a"' } }] }, 1402);
  delta({ tool_calls: [{ index: 0, function: { arguments: ":1}" } }] }, 1403, { finish_reason: "tool_calls" });
  answer.add({ choices: [], usage: { completion_tokens: 9 } }, 1404);
  assert.deepEqual(
    [answer.text, answer.reasoning, answer.audioId, answer.seconds, answer.reason, answer.usage.completion_tokens],
    ["A red star", "hm", "audio_1", 1, "tool_calls", 9],
  );
  assert.deepEqual([answer.firstToken, answer.firstSound, answer.realTimeFactor], [50, 300, 0.4]);
  assert.deepEqual(answer.message.tool_calls, [{ id: "c1", type: "function", function: { name: "look", arguments: '{"a":1}' } }]);
  assert.throws(() => answer.add({ error: { message: "too long" } }, 0), /too long/);
});

test("blocks of code are told from text", () => {
  assert.deepEqual(
    blocksOf("See:\n\n```js\nlet a;\n\n<b>\n```\nand `x` so"),
    [
      { kind: "text", language: undefined, text: "See:" },
      { kind: "code", language: "js", text: "let a;\n\n<b>" },
      { kind: "text", language: undefined, text: "and `x` so" },
    ],
  );
  assert.equal(blocksOf("```\nopen")[0].kind, "code");
  assert.deepEqual(spansOf("a `b` c `"), [["a ", false], ["b", true], [" c `", false]]);
});

const play = (queue, count) => {
  const out = new Float32Array(count);
  const events = queue.render(out);
  return { events: events.map(({ type }) => type), heard: [...out].map((sample) => Math.round(sample * 32768)) };
};

test("sounds follow each other without a gap", () => {
  const queue = new PlayQueue(0);
  queue.push("a", ramp(5));
  queue.push("a", ramp(2));
  queue.push("b", ramp(3));
  queue.finish("a");
  queue.finish("b");
  assert.deepEqual(play(queue, 4), { events: ["started"], heard: [1, 2, 3, 4] });
  assert.deepEqual(play(queue, 8), { events: ["ended", "started", "ended"], heard: [5, 1, 2, 1, 2, 3, 0, 0] });
});

test("a sound waits for its reserve, at the start and after it ran dry", () => {
  const queue = new PlayQueue(4);
  queue.push("a", ramp(3));
  assert.deepEqual(play(queue, 2), { events: [], heard: [0, 0] });
  queue.push("a", ramp(1));
  assert.deepEqual(play(queue, 6), { events: ["started", "waiting"], heard: [1, 2, 3, 1, 0, 0] });
  queue.push("a", ramp(1));
  assert.deepEqual(play(queue, 2), { events: [], heard: [0, 0] });
  queue.finish("a"); // nothing more will come, so nothing is waited for
  assert.deepEqual(play(queue, 2), { events: ["ended"], heard: [1, 0] });
});

test("a stop tells what was played, and nothing but a short fade follows", () => {
  const queue = new PlayQueue(0);
  assert.equal(queue.stop(), null);
  queue.push("a", new Int16Array(1000).fill(1000));
  queue.push("b", new Int16Array(1000).fill(1000));
  play(queue, 300);
  assert.deepEqual(queue.stop(), { id: "a", played: 300 });
  const { heard, events } = play(queue, 128);
  assert.deepEqual([heard[0], heard[60], heard[120], heard[127], events.length], [1000, 500, 0, 0, 0]);
  assert.equal(loudest(play(queue, 128).heard), 0);
  queue.push("c", ramp(2)); // and the next sound is not hurt by it
  assert.deepEqual(play(queue, 2).heard, [1, 2]);
});

test("a sound that was queued but not begun was not heard", () => {
  const queue = new PlayQueue(0);
  queue.push("a", ramp(10));
  assert.equal(queue.stop(), null);
  assert.equal(loudest(play(queue, 16).heard), 0);
});

test("both languages have all words, with the same names in them", () => {
  const names = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
  assert.deepEqual(Object.keys(words.zh).sort(), Object.keys(words.en).sort());
  for (const key of Object.keys(words.en)) assert.deepEqual(names(words.zh[key]), names(words.en[key]), key);
  assert.deepEqual(["zh-CN", "zh", "ZH-TW", "en", "de"].map(languageOf), ["zh", "zh", "zh", "en", "en"]);
});
