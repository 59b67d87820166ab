// What a streamed chat completion adds up to, and how fast it came. No DOM.

import { samplesOfBase64 } from "./pcm.js";

export const RATE = 24000; // of the sound that the server speaks

export class Answer {
  constructor(now) {
    this.started = now;
    this.text = "";
    this.reasoning = "";
    this.chunks = []; // Int16Array
    this.samples = 0;
    this.audioId = null;
    this.tools = []; // {id, name, arguments}
    this.reason = null;
    this.usage = null;
    this.firstToken = this.firstSound = this.lastSound = this.ended = null; // ms after the start
  }

  /** One chunk of the stream. Returns the samples that it brought, or null. Throws what the server reports. */
  add(chunk, now) {
    if (chunk.error) throw new Error(chunk.error.message ?? String(chunk.error));
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return null;
    const { delta = {} } = choice;
    const text = (delta.content ?? "") + (delta.refusal ?? "") + (delta.audio?.transcript ?? "");
    this.text += text;
    this.reasoning += delta.reasoning_content ?? "";
    for (const call of delta.tool_calls ?? []) this.call(call);
    if (choice.finish_reason) this.reason = choice.finish_reason;
    if (text || delta.reasoning_content || delta.tool_calls?.length) this.firstToken ??= now - this.started;
    this.audioId = delta.audio?.id ?? this.audioId;
    if (!delta.audio?.data) return null;
    const samples = samplesOfBase64(delta.audio.data);
    this.firstSound ??= now - this.started;
    this.lastSound = now - this.started;
    this.chunks.push(samples);
    this.samples += samples.length;
    return samples;
  }

  call({ index = 0, id, function: part = {} }) {
    const call = (this.tools[index] ??= { id: "", name: "", arguments: "" });
    call.id = id ?? call.id;
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
  }

  get seconds() {
    return this.samples / RATE;
  }

  /** Seconds of work for a second of sound, or null without sound. */
  get realTimeFactor() {
    return this.samples ? this.lastSound / 1000 / this.seconds : null;
  }

  /** The message that stands for this answer in the next request. */
  get message() {
    const message = { role: "assistant", content: this.text };
    if (this.tools.length) {
      message.tool_calls = this.tools.map((call) => ({
        id: call.id,
        type: "function",
        function: { name: call.name, arguments: call.arguments },
      }));
    }
    return message;
  }
}
