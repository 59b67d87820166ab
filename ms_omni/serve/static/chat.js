// The conversation in writing: what was said, what goes to the server, what comes back.

import { Answer } from "./answer.js";
import { complete } from "./api.js";
import { Attachments, takeFiles } from "./attachments.js";
import { $, toast } from "./dom.js";
import { t } from "./i18n.js";
import { Recorder } from "./recorder.js";
import { chatFields, openSettings, settings } from "./settings.js";
import { Player } from "./sound.js";
import { eventsOf } from "./sse.js";
import { AnswerTurn, userTurn } from "./turns.js";

export class Chat {
  constructor() {
    this.history = []; // {message, element, video}: what the server is sent, and where it stands
    this.attachments = new Attachments();
    this.recorder = new Recorder((file) => this.attachments.add([file]));
    this.player = null;
    this.opening = null; // Promise of the player
    this.request = null; // AbortController of the answer that is coming
    this.sounds = 0;
    this.playing = false;
    takeFiles(this.attachments);
    document.addEventListener("attached", () => this.refresh());
    $("prompt").addEventListener("input", () => this.refresh());
    $("prompt").addEventListener("keydown", (event) => {
      // While an input method composes, Enter chooses a word.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("composer").requestSubmit();
      }
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("stop").onclick = () => this.stop();
    $("clear").onclick = () => this.clear();
    $("record").addEventListener("click", () => this.hush()); // it would be recorded
    $("start-call").addEventListener("click", () => this.stop());
    addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (this.recorder.active) this.recorder.close();
      else this.stop();
    });
    this.refresh();
  }

  get busy() {
    return this.request !== null;
  }

  /** Buttons and sizes follow what there is. */
  refresh() {
    const prompt = $("prompt");
    prompt.rows = 1;
    const line = Number.parseFloat(getComputedStyle(prompt).lineHeight);
    prompt.rows = Math.min(8, Math.max(1, Math.round((prompt.scrollHeight - 16) / line)));
    const something = prompt.value.trim() || this.attachments.list.length || this.recorder.active;
    $("send").disabled = !something || this.busy;
    $("stop").hidden = !this.busy && !this.playing;
    $("send").hidden = !$("stop").hidden && !something;
    $("clear").hidden = !this.history.length;
    $("empty").hidden = this.history.length > 0;
    $("scroll").classList.toggle("started", this.history.length > 0);
  }

  async send() {
    if (this.busy) return;
    if (this.recorder.active) this.recorder.end();
    const text = $("prompt").value.trim();
    if (!text && !this.attachments.list.length) return;
    const sent = this.attachments.take();
    $("prompt").value = "";
    const element = userTurn(text, sent);
    $("turns").append(element);
    const turn = { message: { role: "user", content: text }, element, video: sent.some((one) => one.kind === "video") };
    this.history.push(turn);
    const request = (this.request = new AbortController()); // large files take a while to read
    this.refresh();
    try {
      const parts = await Promise.all(sent.map((one) => one.part));
      if (parts.length) turn.message.content = text ? [...parts, { type: "text", text }] : parts;
    } catch (error) {
      this.history = this.history.filter((one) => one !== turn);
      element.remove();
      if (this.request === request) {
        this.request = null;
        $("prompt").value ||= text;
      }
      toast(error.message);
      return this.refresh();
    }
    if (this.request === request) await this.answer(request); // else the conversation was deleted meanwhile
  }

  messages() {
    const system = settings.system.trim();
    return [...(system ? [{ role: "system", content: system }] : []), ...this.history.map((turn) => turn.message)];
  }

  /** Asks for an answer to the conversation as it stands. */
  async answer(request = new AbortController()) {
    this.request = request;
    const place = this.history.length;
    const retry = () => this.retry(place);
    const turn = new AnswerTurn({ play: (chunks, listener) => this.replay(chunks, listener), hush: () => this.hush() });
    $("turns").append(turn.element);
    this.refresh();
    this.follow(true);
    let answer = new Answer(performance.now());
    turn.update(answer);
    let problem;
    try {
      await this.hush();
      const fields = chatFields();
      const sound = fields.modalities.includes("audio") ? await this.speaker(turn) : null;
      const body = { ...fields, messages: this.messages(), stream: true, stream_options: { include_usage: true } };
      if (this.history.some((one) => one.video)) body.use_audio_in_video = settings.videoSound;
      answer = new Answer(performance.now());
      const response = await complete(body, request.signal);
      await this.read(response, answer, turn, sound);
    } catch (error) {
      problem = error.name === "AbortError" ? t("stopped") : error.message;
      if (error.status === 401) openSettings("key");
    }
    turn.update(answer);
    if (this.request === request) this.request = null;
    if (!turn.element.isConnected) return; // the conversation was deleted meanwhile
    turn.end({ problem, retry });
    if (answer.text || answer.tools.length) this.history.push({ message: answer.message, element: turn.element });
    if (answer.tools.length && !problem) turn.askResults((results) => !this.busy && this.results(results));
    this.refresh();
    this.follow();
  }

  async read(response, answer, turn, sound) {
    try {
      for await (const chunk of eventsOf(response.body)) {
        const samples = answer.add(chunk, performance.now());
        if (samples && sound) this.player.push(sound, samples);
        turn.update(answer);
        this.follow();
      }
    } finally {
      if (sound) this.player.finish(sound);
    }
  }

  results(results) {
    for (const [id, text] of Object.entries(results)) {
      const element = userTurn(text, []);
      $("turns").append(element);
      this.history.push({ message: { role: "tool", tool_call_id: id, content: text }, element });
    }
    return this.answer();
  }

  /** The answer at a place again, and nothing of what came after it. */
  async retry(place) {
    if (this.busy) return;
    for (const turn of this.history.splice(place)) turn.element.remove();
    const kept = this.history.at(-1).element;
    while (kept.nextElementSibling) kept.nextElementSibling.remove();
    await this.answer();
  }

  /** The player, ready for a new sound: the sound's id. */
  async speaker(turn) {
    await this.open();
    const id = `sound-${++this.sounds}`;
    this.listen(id, (event) => turn.follow(event));
    return id;
  }

  listen(id, listener) {
    this.player.on(id, (event) => {
      if (event.type === "started") this.playing = true;
      if (event.type === "ended" || event.type === "stopped") this.playing = false;
      listener(event);
      if (event.type !== "progress") this.refresh();
    });
  }

  /** One player, whoever wants it first; it is tried again if it did not open. */
  async open() {
    this.opening ??= Player.open();
    try {
      this.player = await this.opening;
    } catch (error) {
      this.opening = null;
      throw error;
    }
  }

  async replay(chunks, listener) {
    await this.open();
    const id = `sound-${++this.sounds}`;
    this.listen(id, listener);
    for (const chunk of chunks) this.player.push(id, chunk);
    this.player.finish(id);
  }

  async hush() {
    await this.player?.stop();
  }

  stop() {
    this.request?.abort();
    this.hush();
  }

  clear() {
    this.stop();
    this.request = null;
    const { history } = this;
    const turns = [...$("turns").children].filter((turn) => !turn.classList.contains("busy"));
    this.history = [];
    $("turns").replaceChildren();
    this.refresh();
    $("prompt").focus();
    const run = () => {
      if (this.history.length) return;
      this.history = history;
      $("turns").replaceChildren(...turns);
      this.refresh();
      this.follow(true);
    };
    toast(t("deleted"), { label: t("undo"), run });
  }

  /** Keeps the newest in sight, unless the reader has scrolled up. */
  follow(always = false) {
    const box = $("scroll");
    if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 160) box.scrollTop = box.scrollHeight;
  }
}
