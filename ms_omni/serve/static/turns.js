// One turn of the chat on the page: what the user sent, and an answer with its reasoning, tools, sound and figures.

import { RATE } from "./answer.js";
import { preview } from "./attachments.js";
import { show } from "./blocks.js";
import { announce, clock, download, icon, make, toast } from "./dom.js";
import { t } from "./i18n.js";
import { concat, peaks, toWav } from "./pcm.js";

export function userTurn(text, attachments) {
  const media = attachments.length ? make("div", { className: "media" }, ...attachments.map(preview)) : null;
  const words = text ? make("p", { className: "said", textContent: text }) : null;
  return make("li", { className: "turn user" }, make("h3", { className: "unseen", textContent: t("you") }), media, words);
}

export const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

/** [[name, value, help], ...] as a line of figures; what has no value is left out. */
export function figures(list, element) {
  element.replaceChildren(
    ...list
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value, help]) => make("div", { title: help ?? "" }, make("dt", { textContent: name }), make("dd", { textContent: value }))),
  );
}

const button = (name, label, run) =>
  make("button", { type: "button", className: "icon small", "aria-label": label, title: label, onclick: run }, icon(name));

export class AnswerTurn {
  /** play(chunks, listener): plays samples; hush(): ends what plays. */
  constructor({ play, hush }) {
    Object.assign(this, { play, hush });
    this.thoughts = make("details", { className: "thoughts", hidden: true }, make("summary", { textContent: t("thoughts") }), make("div"));
    this.body = make("div", { className: "body" });
    this.calls = make("div", { className: "calls" });
    this.sound = make("div", { className: "sound", hidden: true, role: "group", "aria-label": t("sound") });
    this.problem = make("p", { className: "problem", hidden: true, role: "alert" });
    this.meters = make("dl", { className: "meters" });
    this.actions = make("div", { className: "after" });
    const parts = [this.thoughts, this.body, this.calls, this.sound, this.problem];
    const foot = make("div", { className: "foot" }, this.actions, this.meters);
    this.element = make("li", { className: "turn answer busy" }, make("h3", { className: "unseen", textContent: t("model") }), ...parts, foot);
  }

  /** Shows an answer as far as it has come; drawn once a frame, however many deltas came. */
  update(answer) {
    this.answer = answer;
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { answer } = this;
    show(this.body, answer.text);
    if (answer.reasoning) {
      this.thoughts.hidden = false;
      show(this.thoughts.lastChild, answer.reasoning);
    }
    this.calls.replaceChildren(
      ...answer.tools.map((call) => {
        const title = make("span", {}, `${t("called")} `, make("code", { textContent: call.name }));
        return make("div", { className: "tool" }, title, make("pre", { textContent: call.arguments }));
      }),
    );
    if (answer.samples) this.drawSound();
    const tokens = answer.usage?.completion_tokens;
    figures(
      [
        [t("firstToken"), answer.firstToken === null ? null : seconds(answer.firstToken)],
        [t("firstSound"), answer.firstSound === null ? null : seconds(answer.firstSound)],
        [t("rtf"), answer.realTimeFactor?.toFixed(2), t("rtfHelp")],
        [t("tokens"), tokens],
      ],
      this.meters,
    );
  }

  drawSound() {
    if (this.sound.hidden) {
      this.sound.hidden = false;
      this.toggle = make("button", { type: "button", className: "icon", onclick: () => this.replay() });
      this.wave = make("canvas", { height: 56, "aria-hidden": "true" });
      this.time = make("span", { className: "clock" });
      const save = () => download(toWav(concat(this.answer.chunks), RATE), "audio/wav", `${this.answer.audioId ?? "answer"}.wav`);
      this.sound.append(this.toggle, this.wave, this.time, button("save", t("save"), save));
      this.playing(this.listening);
    }
    this.time.textContent = clock(Math.ceil(this.answer.seconds));
    this.drawWave();
  }

  drawWave() {
    const pen = this.wave.getContext("2d");
    const { color, accentColor } = getComputedStyle(this.wave);
    const bars = Math.min(80, Math.max(24, Math.round(this.answer.seconds * 16)));
    const { height } = this.wave;
    const width = bars * 5;
    if (this.wave.width !== width) {
      this.wave.width = width;
      this.wave.style.width = `${width / 2}px`; // sharp on screens with two dots to a pixel
    }
    const heard = this.played === undefined ? 0 : this.played / this.answer.samples;
    pen.clearRect(0, 0, width, height);
    const shape = peaks(concat(this.answer.chunks), bars);
    const loudest = Math.max(0.1, ...shape);
    shape.forEach((peak, i) => {
      const tall = Math.max(4, (peak / loudest) * height);
      pen.fillStyle = i / bars < heard ? accentColor : color;
      pen.beginPath();
      pen.roundRect(i * 5, (height - tall) / 2, 3, tall, 1.5);
      pen.fill();
    });
  }

  /** Hears of the player how far it is. */
  follow(event) {
    if (event.played !== undefined) this.played = event.played;
    if (event.type === "started" || event.type === "progress") this.playing(true);
    if (event.type === "ended" || event.type === "stopped") {
      this.played = undefined;
      this.playing(false);
    }
    if (this.wave) this.drawWave();
  }

  playing(now) {
    this.listening = now;
    if (!this.toggle) return;
    this.toggle.replaceChildren(icon(now ? "stop" : "play"));
    this.toggle.ariaLabel = this.toggle.title = t(now ? "stop" : "play");
  }

  async replay() {
    if (this.listening) return this.hush();
    await this.hush();
    return this.play(this.answer.chunks, (event) => this.follow(event));
  }

  /** The answer is complete, or was broken off: `problem` says why. */
  end({ problem, retry }) {
    this.draw();
    this.element.classList.remove("busy");
    const { answer } = this;
    const nothing = !answer.text && !answer.samples && !answer.tools.length;
    const note = problem ?? (answer.reason === "length" ? t("lengthReached") : nothing ? t("noAnswer") : null);
    this.problem.hidden = note === null;
    this.problem.textContent = note ?? "";
    const copy = () => navigator.clipboard.writeText(answer.text).then(() => toast(t("copied")), (error) => toast(error.message));
    this.actions.replaceChildren();
    if (answer.text) this.actions.append(button("copy", t("copy"), copy));
    this.actions.append(button("retry", t("retry"), retry));
    announce(problem ?? answer.text);
  }

  /** Fields for the results of the tools that the model called; give({id: text}) is false while it cannot take them. */
  askResults(give) {
    const fields = this.answer.tools.map((call) => {
      const field = make("textarea", { rows: 1, name: call.id, required: true });
      return [make("label", {}, make("span", { textContent: t("toolAnswer", { name: call.name }) }), field), field];
    });
    const send = make("button", { className: "pill", textContent: t("giveAnswer") });
    const form = make("form", { className: "results" }, ...fields.map(([label]) => label), send);
    form.onsubmit = (event) => {
      event.preventDefault();
      if (give(Object.fromEntries(fields.map(([, field]) => [field.name, field.value])))) form.remove();
    };
    this.calls.after(form);
  }
}
