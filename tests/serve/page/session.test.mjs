// A realtime conversation as the page holds it, without sockets and loudspeakers: `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { toBase64 } from "./pcm.js";
import { Session } from "./session.js";

class FakePlayer {
  constructor() {
    this.log = [];
    this.heard = null;
    this.listeners = {};
  }
  on(id, listener) {
    this.listener = this.listeners[id] = listener;
  }
  push(id, samples) {
    this.log.push(["push", id, samples.length]);
  }
  finish(id) {
    this.log.push(["finish", id]);
  }
  async stop() {
    this.log.push(["stop"]);
    return this.heard;
  }
}

function start({ push = false } = {}) {
  const sent = [];
  const problems = [];
  const player = new FakePlayer();
  const time = { ms: 0 };
  const session = new Session({ send: (event) => sent.push(event), player, now: () => time.ms, changed: () => {}, problem: (text) => problems.push(text) });
  session.configure({ audio: { input: { turn_detection: push ? null : { type: "server_vad" } } } });
  session.handle({ type: "session.updated" });
  sent.length = 0;
  const sound = (item, ms, response = item.replace("a", "r")) => {
    const delta = toBase64(new Int16Array(ms * 24));
    session.handle({ type: "response.output_audio.delta", response_id: response, item_id: item, content_index: 0, delta });
  };
  const say = (type, more) => session.handle({ type, ...more });
  const types = () => sent.map((event) => event.type.split(".").slice(-2).join("."));
  return { session, sent, player, time, sound, say, problems, types };
}

test("a turn: heard, answered, and how long that took", () => {
  const { session, player, time, sound, say } = start();
  say("input_audio_buffer.speech_started", { item_id: "u1" });
  assert.equal(session.state, "hearing");
  time.ms = 1000;
  say("input_audio_buffer.speech_stopped", { item_id: "u1" });
  say("conversation.item.input_audio_transcription.completed", { item_id: "u1", transcript: " three " });
  say("response.created", { response: { id: "r1" } });
  assert.equal(session.state, "thinking");
  say("response.output_audio_transcript.delta", { item_id: "a1", delta: "You " });
  say("response.output_audio_transcript.delta", { item_id: "a1", delta: "said 3" });
  sound("a1", 100);
  time.ms = 1250;
  player.listener({ type: "started" });
  assert.deepEqual([session.state, session.latency], ["speaking", 250]);
  say("response.output_audio.done", { item_id: "a1" });
  say("response.done", { response: { id: "r1", status: "completed", usage: { output_tokens: 5 } } });
  assert.equal(session.state, "speaking"); // the server is done, the loudspeaker is not
  player.listener({ type: "ended" });
  assert.equal(session.state, "listening");
  assert.deepEqual(session.turns.map(({ role, text }) => [role, text]), [["user", "three"], ["assistant", "You said 3"]]);
  assert.deepEqual(player.log.slice(0, 2), [["push", "a1/0", 2400], ["finish", "a1/0"]]);
});

test("interrupted: silence, and the conversation is cut to what was heard", async () => {
  const { session, sent, player, sound, say } = start();
  say("response.created", { response: { id: "r1" } });
  sound("a1", 2000);
  player.listener({ type: "started" });
  player.heard = { id: "a1/0", played: 12012 };
  say("input_audio_buffer.speech_started", { item_id: "u2" });
  assert.deepEqual(player.log.at(-1), ["stop"]);
  assert.equal(session.state, "hearing");
  sound("a1", 500); // was on its way
  say("response.done", { response: { id: "r1", status: "cancelled" } });
  player.listener({ type: "ended" });
  await new Promise(setImmediate);
  assert.deepEqual(player.log.at(-1), ["stop"]);
  assert.deepEqual(sent, [{ type: "conversation.item.truncate", item_id: "a1", content_index: 0, audio_end_ms: 500 }]);
  assert.deepEqual([session.state, session.turns[1].interrupted], ["hearing", true]);
  say("input_audio_buffer.speech_stopped", { item_id: "u2" });
  sound("a2", 100);
  assert.deepEqual(player.log.at(-1), ["push", "a2/0", 2400]);
});

test("an answer of which nothing was heard is cut to nothing, and none is cut when none plays", async () => {
  const { session, sent, sound, say } = start();
  say("input_audio_buffer.speech_started", { item_id: "u1" });
  await session.interrupt();
  assert.deepEqual(sent, []);
  say("input_audio_buffer.speech_stopped", { item_id: "u1" });
  sound("a1", 100);
  say("input_audio_buffer.speech_started", { item_id: "u2" });
  await new Promise(setImmediate);
  assert.equal(sent[0].audio_end_ms, 0);
});

test("push to talk: sound is sent while the button is down, and a slip is no question", async () => {
  const { session, sent, player, sound, types } = start({ push: true });
  session.hear(new Int16Array(960));
  assert.deepEqual(sent, []);
  session.press();
  session.press(); // a key that repeats
  for (let i = 0; i < 4; i++) session.hear(new Int16Array(960));
  session.release();
  session.release();
  const append = "input_audio_buffer.append";
  assert.deepEqual(types(), ["input_audio_buffer.clear", append, append, append, append, "input_audio_buffer.commit", "response.create"]);
  assert.equal(session.state, "thinking");

  sent.length = 0;
  session.handle({ type: "response.created", response: { id: "r1" } });
  sound("a1", 1000);
  player.listener({ type: "started" });
  player.heard = { id: "a1/0", played: 2400 };
  session.press();
  await new Promise(setImmediate);
  session.release();
  assert.deepEqual(sent.map(({ type }) => type), [
    "response.cancel", "input_audio_buffer.clear", "conversation.item.truncate", "input_audio_buffer.clear",
  ]);
  assert.deepEqual([sent[0].response_id, sent[2].audio_end_ms, session.state], ["r1", 100, "listening"]);
});

test("muted: silence is sent, so that the server's clock goes on", () => {
  const { session, sent } = start();
  session.muted = true;
  session.hear(new Int16Array(4).fill(9));
  assert.equal(sent[0].audio, toBase64(new Int16Array(4)));
});

test("pictures: those of this turn only, before its sound is answered", () => {
  const { session, sent, say } = start();
  session.see("data:image/jpeg;base64,1");
  assert.deepEqual(sent, []); // nobody speaks
  say("input_audio_buffer.speech_started", { item_id: "u1" });
  for (let i = 2; i < 20; i++) session.see(`data:image/jpeg;base64,${i}`);
  say("input_audio_buffer.speech_stopped", { item_id: "u1" });
  assert.deepEqual([sent.length, sent[0].item.content[0].image_url, sent[7].item.id], [8, "data:image/jpeg;base64,1", "frame_8"]);
  sent.length = 0;
  say("input_audio_buffer.speech_started", { item_id: "u2" });
  assert.deepEqual(sent.slice(0, 8).map(({ type, item_id: id }) => [type, id])[7], ["conversation.item.delete", "frame_8"]);
  assert.deepEqual([sent.length, sent[8].item.id], [9, "frame_9"]);
});

test("errors are told", () => {
  const { session, say, problems } = start();
  say("error", { error: { message: "no such item" } });
  say("response.created", { response: { id: "r" } });
  say("response.done", { response: { id: "r", status: "failed", status_details: { error: { message: "too long" } } } });
  assert.deepEqual([problems, session.state], [["no such item", "too long"], "listening"]);
});

test("an older answer's end changes nothing of a newer one", () => {
  const { session, player, sound, say } = start();
  say("response.created", { response: { id: "r1" } });
  sound("a1", 100);
  player.listeners["a1/0"]({ type: "started" });
  say("response.created", { response: { id: "r2" } });
  sound("a2", 100);
  player.log.length = 0;
  say("response.done", { response: { id: "r1", status: "completed" } });
  assert.deepEqual([player.log, session.response], [[], "r2"]); // more of its sound is to come
  player.listeners["a1/0"]({ type: "ended" });
  assert.equal(session.speech.item, "a2");
  say("response.done", { response: { id: "r2", status: "completed" } });
  assert.deepEqual(player.log, [["finish", "a2/0"]]);
  player.listeners["a2/0"]({ type: "started" });
  player.listeners["a2/0"]({ type: "ended" });
  assert.deepEqual([session.speech, session.state], [null, "listening"]);

  say("response.created", { response: { id: "r3" } });
  say("response.done", { response: { id: "r2", status: "completed" } });
  assert.equal(session.state, "thinking");
});

test("push to talk: nothing is heard of an answer whose first sound, or whose beginning, was on its way", () => {
  const { session, sent, player, sound, say, types } = start({ push: true });
  say("response.created", { response: { id: "r1" } });
  session.press();
  sound("a1", 100);
  sound("a1", 100);
  say("response.done", { response: { id: "r1", status: "cancelled" } });
  assert.deepEqual(types(), ["response.cancel", "input_audio_buffer.clear", "item.truncate"]);
  assert.deepEqual([sent[2].item_id, sent[2].audio_end_ms, session.state], ["a1", 0, "hearing"]);
  sent.length = 0;
  say("response.created", { response: { id: "r2" } });
  sound("a2", 100);
  assert.deepEqual([types(), sent[0].response_id], [["response.cancel", "item.truncate"], "r2"]);
  assert.deepEqual([player.log, session.state], [[], "hearing"]);
});
