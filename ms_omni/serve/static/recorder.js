// Records the user's voice into a WAV file, 16 kHz mono, which is what the model listens to.

import { $, clock, setIcon, toast } from "./dom.js";
import { t } from "./i18n.js";
import { concat, toWav } from "./pcm.js";
import { Microphone } from "./sound.js";

const RATE = 16000;

export class Recorder {
  /** take(file): the recording. */
  constructor(take) {
    this.take = take;
    this.microphone = null;
    $("record").onclick = () => (this.microphone ? this.end() : this.begin());
    $("discard").onclick = () => this.close();
  }

  get active() {
    return this.microphone !== null;
  }

  async begin() {
    this.chunks = [];
    this.levels = [];
    $("record").disabled = true;
    try {
      this.microphone = await Microphone.open({ rate: RATE, chunk_s: 0.05, clean: false, take: (chunk) => this.hear(chunk) });
      this.show(true);
    } catch (error) {
      toast(error.message);
    }
    $("record").disabled = false;
  }

  hear({ samples, level }) {
    this.chunks.push(samples);
    this.levels.push(level);
    $("recorded").textContent = clock(this.chunks.length * 0.05);
    const canvas = $("wave");
    if (canvas.width !== canvas.clientWidth) canvas.width = canvas.clientWidth;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = getComputedStyle(canvas).color;
    const shown = this.levels.slice(-Math.floor(canvas.width / 4));
    shown.forEach((one, i) => {
      const height = Math.max(2, Math.min(1, one * 4) * canvas.height);
      pen.fillRect(canvas.width - (shown.length - i) * 4, (canvas.height - height) / 2, 2, height);
    });
  }

  /** Ends the recording and hands it over. */
  end() {
    const samples = concat(this.chunks);
    this.close();
    if (samples.length) this.take(new File([toWav(samples, RATE)], "voice.wav", { type: "audio/wav" }));
  }

  close() {
    this.microphone?.close();
    this.microphone = null;
    this.show(false);
  }

  show(active) {
    $("recording").hidden = !active;
    $("prompt").hidden = active;
    $("record").setAttribute("aria-pressed", active);
    $("record").dataset.tLabel = active ? "recordEnd" : "record";
    $("record").ariaLabel = $("record").title = t(active ? "recordEnd" : "record");
    setIcon($("record"), active ? "stop" : "mic");
    if (!active) $("recorded").textContent = "";
    document.dispatchEvent(new Event("attached"));
  }
}
