// Plays 16 bit PCM as it arrives and keeps count of what was really played, which is what a conversation is cut to when
// somebody interrupts. One file and no imports, as capture-worklet.js.

const FADE = 120; // samples (5 ms at 24 kHz): a stop without a click

/** A queue of sounds, each under an id; `render` fills a block. Events are plain objects: started, progress, ended, waiting. */
export class PlayQueue {
  /** reserve: samples that are gathered before a sound begins, and again after it ran dry. */
  constructor(reserve) {
    this.reserve = reserve;
    this.sounds = []; // {id, chunks, at, queued, played, finished, flowing}
    this.tail = null; // what fades after a stop
  }

  push(id, samples) {
    let sound = this.sounds.find((one) => one.id === id);
    if (!sound) {
      sound = { id, chunks: [], at: 0, queued: 0, played: 0, finished: false, flowing: false };
      this.sounds.push(sound);
    }
    sound.chunks.push(samples);
    sound.queued += samples.length;
  }

  /** No more comes of this sound. */
  finish(id) {
    const sound = this.sounds.find((one) => one.id === id);
    if (sound) sound.finished = true;
  }

  /** Stops at once. Returns {id, played} of the sound that was heard, or null; the count has no fade in it. */
  stop() {
    const [sound] = this.sounds;
    this.sounds = [];
    if (!sound || !sound.played) return null;
    this.tail = this.take(sound, Math.min(FADE, sound.queued - sound.played), false).map(
      (sample, i, all) => sample * (1 - i / all.length),
    );
    return { id: sound.id, played: sound.played };
  }

  take(sound, count, counted = true) {
    const out = new Float32Array(count);
    for (let i = 0; i < count; ) {
      const chunk = sound.chunks[0];
      const part = chunk.subarray(sound.at, sound.at + count - i);
      part.forEach((sample, k) => (out[i + k] = sample / 32768));
      i += part.length;
      sound.at += part.length;
      if (sound.at === chunk.length) {
        sound.chunks.shift();
        sound.at = 0;
      }
    }
    if (counted) sound.played += count;
    return out;
  }

  render(out) {
    const events = [];
    let at = 0;
    if (this.tail) {
      out.set(this.tail.subarray(0, out.length));
      at = Math.min(this.tail.length, out.length);
      this.tail = this.tail.length > out.length ? this.tail.subarray(out.length) : null;
    }
    while (at < out.length && this.sounds.length) {
      const [sound] = this.sounds;
      const ready = sound.queued - sound.played;
      if (!ready && sound.finished) {
        events.push({ type: "ended", id: sound.id, played: sound.played });
        this.sounds.shift();
        continue;
      }
      if (!sound.flowing && !sound.finished && ready < this.reserve) break;
      if (!ready) {
        sound.flowing = false;
        events.push({ type: "waiting", id: sound.id });
        break;
      }
      if (!sound.played) events.push({ type: "started", id: sound.id });
      sound.flowing = true;
      const count = Math.min(ready, out.length - at);
      out.set(this.take(sound, count), at);
      at += count;
    }
    return events;
  }
}

class Player extends (globalThis.AudioWorkletProcessor ?? Object) {
  constructor({ processorOptions }) {
    super();
    this.queue = new PlayQueue(processorOptions.reserve);
    this.blocks = 0;
    this.port.onmessage = ({ data }) => {
      if (data.type === "push") this.queue.push(data.id, data.samples);
      if (data.type === "finish") this.queue.finish(data.id);
      if (data.type === "stop") this.port.postMessage({ type: "stopped", call: data.call, heard: this.queue.stop() });
      if (data.type === "close") this.closed = true;
    };
  }

  process(_, [output]) {
    for (const event of this.queue.render(output[0])) this.port.postMessage(event);
    for (const channel of output.slice(1)) channel.set(output[0]);
    const [sound] = this.queue.sounds;
    if (sound?.played && ++this.blocks % 8 === 0) {
      let sum = 0;
      for (const sample of output[0]) sum += sample * sample;
      const level = Math.sqrt(sum / output[0].length);
      this.port.postMessage({ type: "progress", id: sound.id, played: sound.played, level });
    }
    return !this.closed;
  }
}

globalThis.registerProcessor?.("player", Player);
