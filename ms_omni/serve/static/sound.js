// The browser's sound: a player and a microphone, each with its worklet.

import { RATE } from "./answer.js";
import { t } from "./i18n.js";

const worklet = (context, name) => context.audioWorklet.addModule(new URL(`./${name}-worklet.js`, import.meta.url));

/** Plays 24 kHz samples; the browser converts to the device's rate. Made by a user's gesture, as browsers demand. */
export class Player {
  /** reserve_s: seconds that are gathered before a sound begins. */
  static async open(reserve_s = 0.12) {
    const player = new Player();
    player.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    try {
      await worklet(player.context, "player");
      const processorOptions = { reserve: Math.round(reserve_s * RATE) };
      player.node = new AudioWorkletNode(player.context, "player", { numberOfInputs: 0, outputChannelCount: [1], processorOptions });
      player.node.port.onmessage = ({ data }) => player.heard(data);
      player.node.connect(player.context.destination);
    } catch (error) {
      await player.close();
      throw error;
    }
    return player;
  }

  constructor() {
    this.listeners = new Map(); // id -> function of the worklet's events
    this.calls = new Map();
  }

  heard(event) {
    if (event.type === "stopped") {
      this.calls.get(event.call)(event.heard);
      this.calls.delete(event.call);
    } else this.listeners.get(event.id)?.(event);
    if (event.type === "ended") this.listeners.delete(event.id);
  }

  on(id, listener) {
    this.listeners.set(id, listener);
  }

  /** Samples of a sound that is listened to: what comes late for one that was stopped is not heard. */
  push(id, samples) {
    if (!this.listeners.has(id)) return;
    if (this.context.state === "suspended") this.context.resume().catch(() => {}); // closed meanwhile
    this.node.port.postMessage({ type: "push", id, samples });
  }

  finish(id) {
    this.node.port.postMessage({ type: "finish", id });
  }

  /** Silence at once. Resolves to {id, played}: samples that left the loudspeaker, or null. */
  async stop() {
    const call = crypto.getRandomValues(new Uint32Array(1))[0];
    const stopped = [...this.listeners.values()]; // not of sounds that begin before the worklet answers
    this.listeners.clear();
    const heard = await new Promise((resolve) => {
      this.calls.set(call, resolve);
      this.node.port.postMessage({ type: "stop", call });
    });
    for (const listener of stopped) listener({ type: "stopped" });
    if (!heard) return null;
    const ahead = Math.round((this.context.outputLatency || 0) * RATE); // handed to the device, not yet heard
    return { ...heard, played: Math.max(0, heard.played - ahead) };
  }

  close() {
    this.node?.port.postMessage({ type: "close" });
    return this.context.close();
  }
}

/** navigator.mediaDevices.getUserMedia with an error that helps. */
export async function devices(constraints) {
  if (!navigator.mediaDevices) throw new Error(t("insecure"));
  try {
    return await navigator.mediaDevices.getUserMedia(constraints);
  } catch (error) {
    throw new Error(t("denied", { reason: error.message }), { cause: error });
  }
}

/**
 * The microphone as PCM16: `take({samples, level})` for each chunk. clean: without the answer's echo and noise, as a call needs
 * it; a recording is better left as it is.
 */
export class Microphone {
  static async open({ rate, chunk_s, clean, take }) {
    const microphone = new Microphone();
    // No automatic gain: it begins too high, so that the first words of a call are clipped.
    microphone.stream = await devices({
      audio: { channelCount: 1, echoCancellation: clean, noiseSuppression: clean, autoGainControl: false },
    });
    try {
      // In the device's own rate: Firefox connects no others. The worklet resamples.
      microphone.context = new AudioContext({ latencyHint: "interactive" });
      await worklet(microphone.context, "capture");
      const processorOptions = { rate, samples: Math.round(rate * chunk_s) };
      microphone.node = new AudioWorkletNode(microphone.context, "capture", { numberOfOutputs: 0, processorOptions });
      microphone.node.port.onmessage = ({ data }) => take(data);
      microphone.context.createMediaStreamSource(microphone.stream).connect(microphone.node);
      await microphone.context.resume();
    } catch (error) {
      await microphone.close();
      throw error;
    }
    return microphone;
  }

  close() {
    if (this.node) {
      this.node.port.onmessage = null;
      this.node.port.postMessage("close");
    }
    for (const track of this.stream.getTracks()) track.stop();
    return this.context?.close();
  }
}
