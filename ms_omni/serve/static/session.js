// A realtime conversation: the server's events in, the client's events out, and what is said by whom. No DOM and no sockets:
// `send(event)` takes the client's events, `changed()` is called when something is to be shown.

import { RATE } from "./answer.js";
import { samplesOfBase64, toBase64 } from "./pcm.js";

const MOST_FRAMES = 8; // pictures of one turn
const SHORTEST = RATE / 10; // samples: less is a slip of the finger, not speech

export class Session {
  /** player: push(id, samples), finish(id), on(id, listener), stop() -> Promise of {id, played} or null. */
  constructor({ send, player, now, changed, problem }) {
    Object.assign(this, { send, player, now, changed, problem });
    this.state = "connecting"; // listening, hearing, thinking, speaking
    this.turns = []; // {id, role, text, interrupted, latency, said_ms}: of a user how long he spoke
    this.pushToTalk = false;
    this.talking = false; // the button of push to talk is down
    this.said = 0; // samples since it went down
    this.muted = false;
    this.response = null; // id of the answer that the server is at
    this.speech = null; // {response, item, content, id, samples} of the answer that is heard, or soon will be
    this.dropped = new Set(); // items and answers whose sound is not wanted any more
    this.asked = null; // when the user's turn ended
    this.latency = null; // ms from then to the first sound
    this.usage = null;
    this.level = 0; // of the answer's sound
    this.frame = null; // the camera's newest picture
    this.frames = []; // ids of this turn's pictures
    this.count = 0;
  }

  to(state) {
    this.state = state;
    this.changed();
  }

  configure(session) {
    this.pushToTalk = session.audio.input.turn_detection === null;
    this.send({ type: "session.update", session });
  }

  /** The entry of an item in the transcript, made when it is first heard of. */
  turn(id, role) {
    let turn = this.turns.find((one) => one.id === id);
    if (!turn) this.turns.push((turn = { id, role, text: "", interrupted: false, latency: null, said_ms: null }));
    return turn;
  }

  /** A chunk of the microphone, Int16Array at 24 kHz. */
  hear(samples) {
    if (this.state === "connecting" || (this.pushToTalk && !this.talking)) return;
    this.said += samples.length;
    // Silence while muted, rather than nothing: the server measures the end of a turn in samples.
    const sent = this.muted ? new Int16Array(samples.length) : samples;
    this.send({ type: "input_audio_buffer.append", audio: toBase64(sent) });
  }

  /** A picture of the camera as a data URI. Only those of the turn at hand are part of the conversation. */
  see(picture) {
    this.frame = picture;
    if (this.state === "hearing") this.sendFrame();
  }

  sendFrame() {
    if (!this.frame || this.frames.length >= MOST_FRAMES) return;
    const id = `frame_${++this.count}`;
    this.frames.push(id);
    const content = [{ type: "input_image", image_url: this.frame }];
    this.send({ type: "conversation.item.create", item: { id, type: "message", role: "user", content } });
  }

  /** The user begins to speak: nothing of the answer is heard from here on. */
  begin() {
    if (this.response) this.dropped.add(this.response); // its first sound may be on its way
    const interrupted = this.interrupt();
    for (const id of this.frames.splice(0)) this.send({ type: "conversation.item.delete", item_id: id });
    this.to("hearing");
    this.sendFrame();
    return interrupted;
  }

  end() {
    this.asked = this.now();
    this.to("thinking");
  }

  /** Silences the answer and cuts the conversation to what was heard of it. */
  async interrupt() {
    const { speech } = this;
    if (!speech) return;
    this.speech = null;
    this.dropped.add(speech.item);
    const heard = await this.player.stop();
    this.cut(speech, heard?.id === speech.id ? Math.min(heard.played, speech.samples) : 0);
  }

  cut({ item, content }, played) {
    this.turn(item, "assistant").interrupted = true;
    const audio_end_ms = Math.floor((played * 1000) / RATE);
    this.send({ type: "conversation.item.truncate", item_id: item, content_index: content, audio_end_ms });
    this.changed();
  }

  press() {
    if (!this.pushToTalk || this.talking || this.state === "connecting") return;
    this.talking = true;
    this.said = 0;
    if (this.response) this.cancel();
    this.send({ type: "input_audio_buffer.clear" });
    this.begin();
  }

  cancel() {
    this.send({ type: "response.cancel", response_id: this.response });
  }

  release() {
    if (!this.talking) return;
    this.talking = false;
    if (this.said < SHORTEST) {
      this.send({ type: "input_audio_buffer.clear" });
      this.to("listening");
      return;
    }
    this.send({ type: "input_audio_buffer.commit" });
    this.send({ type: "response.create" });
    this.end();
  }

  /** One event of the server. Those that say nothing new to us are passed over. */
  handle(event) {
    switch (event.type) {
      case "session.updated":
        if (this.state === "connecting") this.to("listening");
        break;
      case "input_audio_buffer.speech_started":
        this.turn(event.item_id, "user").began_ms = event.audio_start_ms;
        this.begin();
        break;
      case "input_audio_buffer.speech_stopped": {
        const turn = this.turn(event.item_id, "user");
        turn.said_ms = event.audio_end_ms - turn.began_ms;
        this.end();
        break;
      }
      case "input_audio_buffer.committed":
        this.turn(event.item_id, "user");
        this.changed();
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.turn(event.item_id, "user").text += event.delta;
        this.changed();
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.turn(event.item_id, "user").text = event.transcript.trim();
        this.changed();
        break;
      case "response.created":
        this.response = event.response.id;
        if (this.talking) {
          // Asked for before the button went down again.
          this.dropped.add(this.response);
          this.cancel();
        } else if (this.state !== "hearing") this.to("thinking");
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        this.turn(event.item_id, "assistant").text += event.delta;
        this.changed();
        break;
      case "response.output_audio.delta":
        this.sound(event);
        break;
      case "response.output_audio.done":
        if (this.speech?.item === event.item_id) this.player.finish(this.speech.id);
        break;
      case "response.done":
        this.done(event.response);
        break;
      case "error":
        this.problem(event.error.message);
        break;
    }
  }

  sound({ response_id: response, item_id: item, content_index: content, delta }) {
    if (this.dropped.has(item)) return; // was on its way when the user began to speak
    if (this.dropped.has(response)) {
      this.dropped.add(item);
      return this.cut({ item, content }, 0);
    }
    const samples = samplesOfBase64(delta);
    const id = `${item}/${content}`;
    if (this.speech?.id !== id) {
      const speech = (this.speech = { response, item, content, id, samples: 0 });
      this.player.on(id, (event) => this.follow(speech, event));
    }
    this.speech.samples += samples.length;
    this.player.push(id, samples);
  }

  /** Events of the player for the answer that is heard; the next one may be queued behind it. */
  follow(speech, event) {
    const { item } = speech;
    if (this.dropped.has(item)) return; // was on its way when the sound was stopped
    this.level = event.level ?? 0;
    if (event.type === "started") {
      if (this.asked !== null) {
        this.latency = this.now() - this.asked;
        this.turn(item, "assistant").latency = this.latency;
        this.asked = null;
      }
      this.to("speaking");
    }
    if (event.type === "ended" && this.speech === speech) {
      this.speech = null;
      if (this.state === "speaking") this.to("listening");
    }
  }

  done(response) {
    const newest = this.response === response.id;
    if (newest) this.response = null;
    this.usage = response.usage ?? this.usage;
    if (this.speech?.response === response.id) this.player.finish(this.speech.id);
    if (response.status === "failed") this.problem(response.status_details?.error?.message ?? "response failed");
    // An answer without sound: there is nothing to wait for.
    if (newest && !this.speech && this.state === "thinking" && response.status !== "cancelled") this.to("listening");
  }
}
