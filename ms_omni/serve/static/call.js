// The call on the page: microphone, camera, buttons and transcript around a realtime session.

import { RATE } from "./answer.js";
import { models, realtime } from "./api.js";
import { $, clock, make, setIcon, toast } from "./dom.js";
import { t } from "./i18n.js";
import { Session } from "./session.js";
import { isMiniature, save, sessionFields, settings } from "./settings.js";
import { devices, Microphone, Player } from "./sound.js";
import { figures, seconds } from "./turns.js";

const CHUNK_S = 0.04;
const FRAME_PX = 448; // the longer side of a camera's picture

export class Call {
  constructor() {
    this.session = null;
    $("start-call").onclick = () => this.start();
    $("again").onclick = () => this.start();
    $("hang-up").onclick = () => $("call").close();
    $("call").addEventListener("close", () => this.end());
    $("mute").onclick = () => this.mute(!this.session?.muted);
    $("camera").onclick = () => this.toggleCamera();
    $("push").onclick = () => this.setPush(!settings.push);
    const talk = $("talk");
    talk.addEventListener("pointerdown", (event) => {
      talk.setPointerCapture(event.pointerId);
      this.press();
    });
    for (const name of ["pointerup", "pointercancel"]) talk.addEventListener(name, () => this.release());
    talk.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press on phones
    addEventListener("blur", () => this.release());
    $("call").addEventListener("keydown", (event) => {
      if (event.code !== "Space" || !settings.push || !this.session) return;
      event.preventDefault(); // it would press the button that has the focus
      if (!event.repeat) this.press();
    });
    $("call").addEventListener("keyup", (event) => {
      if (event.code !== "Space" || !settings.push || !this.session) return;
      event.preventDefault();
      this.release();
    });
  }

  press() {
    this.session?.press();
  }

  release() {
    this.session?.release();
  }

  async start() {
    const call = $("call");
    if (!call.open) call.showModal();
    const ended = this.end();
    const mine = (this.current = {}); // what belongs to this call, for what ends in the middle of its start
    $("again").hidden = true;
    $("transcript").replaceChildren();
    this.lines = new Map();
    $("call-model").textContent = settings.model;
    $("hang-up").focus();
    this.note = null;
    this.show("connecting");
    try {
      await ended;
      mine.player = await Player.open(0.08);
      const take = (chunk) => this.current === mine && this.hear(chunk);
      if (this.current === mine) mine.microphone = await Microphone.open({ rate: RATE, chunk_s: CHUNK_S, clean: true, take });
      if (this.current !== mine) return await this.free(mine);
      this.connect(mine);
    } catch (error) {
      if (this.current === mine) await this.fail(error.message);
      else await this.free(mine);
    }
  }

  connect(mine) {
    const socket = (mine.socket = realtime());
    const session = new Session({
      send: (event) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event)),
      player: mine.player,
      now: () => performance.now(),
      changed: () => this.session === session && this.changed(), // the player may still tell of what it has stopped
      // Before the session is ready nothing else can follow: the settings were refused.
      problem: (text) => (session.state === "connecting" ? this.fail(text) : toast(text)),
    });
    this.session = session;
    let greeted = false;
    socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      if (event.type === "session.created") {
        greeted = true;
        mine.started = performance.now();
        mine.ticking = setInterval(() => this.tick(), 500);
        session.configure(sessionFields());
      }
      session.handle(event);
    };
    socket.onclose = async ({ reason }) => {
      const message = reason || (greeted ? t("lost") : await this.refusal());
      if (this.current === mine) this.fail(message);
    };
    this.showButtons();
  }

  /** Browsers do not tell why a server refuses a socket; for its other answers they do. */
  async refusal() {
    try {
      await models();
      return t("socketFailed");
    } catch (error) {
      return error.message;
    }
  }

  hear({ samples, level }) {
    this.session?.hear(samples);
    const speaking = this.session?.state === "speaking";
    const shown = Math.min(1, (speaking ? (this.session.level ?? 0) : this.session?.muted ? 0 : level) * 4);
    $("level").value = shown;
    $("orb").style.setProperty("--level", shown.toFixed(3));
  }

  tick() {
    $("call-clock").textContent = clock((performance.now() - this.current.started) / 1000);
  }

  /** The session has changed. */
  changed() {
    this.show(this.session.state);
    for (const turn of this.session.turns) this.showTurn(turn);
    const { latency, usage } = this.session;
    const answered = latency === null ? null : seconds(latency);
    figures([[t("answered"), answered, t("answeredHelp")], [t("tokens"), usage?.output_tokens]], $("call-meters"));
  }

  show(state) {
    $("call").dataset.state = state;
    $("state").textContent = t(state);
    const notes = { hearing: "hearingNote", speaking: "interruptNote", listening: isMiniature() ? "digitsNote" : "listeningNote" };
    let note = notes[state];
    if (settings.push && state !== "connecting" && state !== "ended") note = state === "hearing" ? "hearingNote" : "talkNote";
    else if (this.session?.muted && state !== "ended") note = "mutedNote";
    $("call-note").textContent = this.note ?? (note ? t(note) : "");
  }

  showTurn(turn) {
    const list = $("transcript");
    let line = this.lines.get(turn.id);
    if (!line) {
      line = make("li", { className: turn.role }, make("b", { className: "unseen", textContent: t(turn.role === "user" ? "you" : "model") }), make("p"), make("small"));
      this.lines.set(turn.id, line);
      list.append(line);
    }
    const [, words, small] = line.children;
    // Not every server writes down what it hears.
    const spoken = turn.said_ms === null ? t("spoken") : `${t("spoken")} ${(turn.said_ms / 1000).toFixed(1)} s`;
    const text = turn.text || (turn.role === "user" ? spoken : "…");
    if (words.textContent !== text) words.textContent = text;
    const about = [turn.interrupted ? t("interrupted") : "", turn.latency === null ? "" : seconds(turn.latency)];
    small.textContent = about.filter(Boolean).join(" · ");
    line.classList.toggle("cut", turn.interrupted);
    list.scrollTop = list.scrollHeight;
  }

  mute(muted) {
    if (!this.session) return;
    this.session.muted = muted;
    this.showButtons();
    this.show(this.session.state);
  }

  setPush(push) {
    settings.push = push;
    save();
    this.release();
    this.session?.configure(sessionFields());
    this.showButtons();
    if (this.session) this.show(this.session.state);
  }

  showButtons() {
    const pressed = (id, on) => $(id).setAttribute("aria-pressed", Boolean(on));
    const muted = this.session?.muted;
    pressed("mute", muted);
    setIcon($("mute"), muted ? "mic-off" : "mic");
    $("mute").lastChild.textContent = t(muted ? "muted" : "mute");
    pressed("camera", this.current?.camera);
    pressed("push", settings.push);
    $("talk").hidden = !settings.push || !this.session;
    $("call").classList.toggle("pushing", settings.push);
  }

  async toggleCamera() {
    const mine = this.current;
    if (!mine || mine.opening) return; // a second click while the browser asks the user
    if (mine.camera) this.closeCamera(mine);
    else {
      mine.opening = true;
      try {
        await this.openCamera(mine);
      } catch (error) {
        this.closeCamera(mine);
        if (this.current === mine) toast(error.message);
      } finally {
        mine.opening = false;
      }
    }
    this.showButtons();
  }

  async openCamera(mine) {
    mine.camera = await devices({ video: { width: { ideal: 640 }, facingMode: "user" } });
    if (this.current !== mine) return this.closeCamera(mine);
    $("view").srcObject = mine.camera;
    $("view").hidden = false;
    await $("view").play();
    if (this.current !== mine) return; // the end of the call has closed it
    mine.looking = setInterval(() => this.look(), 1000);
    this.look();
  }

  look() {
    const view = $("view");
    const { videoWidth: width, videoHeight: height } = view;
    if (!width || !this.session) return;
    const scale = Math.min(1, FRAME_PX / Math.max(width, height));
    const canvas = make("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
    canvas.getContext("2d").drawImage(view, 0, 0, canvas.width, canvas.height);
    this.session.see(canvas.toDataURL("image/jpeg", 0.8));
  }

  closeCamera(mine) {
    clearInterval(mine.looking);
    if (!mine.camera) return;
    for (const track of mine.camera.getTracks()) track.stop();
    // A newer call may have a camera of its own.
    if (this.current === mine && this.session) this.session.frame = null;
    if ($("view").srcObject === mine.camera) {
      $("view").hidden = true;
      $("view").srcObject = null;
    }
    mine.camera = null;
  }

  /** The call is over, but its transcript stays to be read. */
  async fail(message) {
    const ended = this.end();
    this.note = message; // before anything is waited for: the next call has its own
    this.show("ended");
    $("again").hidden = false;
    await ended;
  }

  async end() {
    const mine = this.current;
    this.current = this.session = null;
    this.showButtons();
    $("level").value = 0;
    $("orb").style.setProperty("--level", 0);
    if (mine) await this.free(mine);
  }

  async free(mine) {
    clearInterval(mine.ticking);
    this.closeCamera(mine);
    if (mine.socket) mine.socket.onmessage = mine.socket.onclose = null;
    mine.socket?.close();
    const { microphone, player } = mine; // once: what has been closed must not be closed again
    mine.microphone = mine.player = null;
    await Promise.all([microphone?.close(), player?.close()]);
  }
}
