// The microphone in its own rate -> 16 bit PCM of the rate that is asked for, in equal chunks, each with its level.
// One file and no imports: not every browser imports inside of a worklet. Under node only the classes are made.

const ZEROS = 12; // zero crossings of the sinc on each side: more than 60 dB down above the new Nyquist frequency

const gcd = (a, b) => (b ? gcd(b, a % b) : a);

/** Streaming polyphase resampler: output n lies at input n * from / to, kept as a fraction, so that nothing drifts. */
export class Resampler {
  constructor(from, to) {
    const divisor = gcd(from, to);
    this.up = to / divisor;
    this.down = from / divisor;
    const cutoff = Math.min(1, to / from) * 0.95;
    this.half = Math.ceil(ZEROS / cutoff);
    this.taps = [];
    for (let phase = 0; phase < this.up; phase++) this.taps.push(this.filter(phase / this.up, cutoff));
    this.held = new Float32Array(2 * this.half); // silence before the first sample
    this.phase = 0;
    this.skip = this.half; // input samples until the next output's window begins; the first is centred on sample 0
  }

  filter(shift, cutoff) {
    const taps = new Float32Array(2 * this.half + 1);
    let sum = 0;
    for (let i = 0; i < taps.length; i++) {
      const t = i - this.half - shift;
      const x = Math.PI * t * cutoff;
      const window = Math.abs(t) > this.half ? 0 : 0.5 + 0.5 * Math.cos((Math.PI * t) / this.half);
      taps[i] = (x === 0 ? 1 : Math.sin(x) / x) * window;
      sum += taps[i];
    }
    return taps.map((tap) => tap / sum);
  }

  /** Float32Array in, Float32Array out; what needs later input waits for it. */
  process(input) {
    const all = new Float32Array(this.held.length + input.length);
    all.set(this.held);
    all.set(input, this.held.length);
    const out = [];
    let at = this.skip;
    while (at + 2 * this.half < all.length) {
      const taps = this.taps[this.phase];
      let sum = 0;
      for (let i = 0; i < taps.length; i++) sum += taps[i] * all[at + i];
      out.push(sum);
      this.phase += this.down;
      at += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const kept = Math.min(at, all.length);
    this.skip = at - kept;
    this.held = all.slice(kept);
    return Float32Array.from(out);
  }
}

class Capture extends (globalThis.AudioWorkletProcessor ?? Object) {
  constructor({ processorOptions }) {
    super();
    this.resampler = new Resampler(sampleRate, processorOptions.rate);
    this.chunk = new Int16Array(processorOptions.samples);
    this.filled = 0;
    this.port.onmessage = () => (this.closed = true);
  }

  process([input]) {
    if (input.length) {
      const mono = new Float32Array(input[0].length);
      for (const channel of input) channel.forEach((sample, i) => (mono[i] += sample / input.length));
      for (const sample of this.resampler.process(mono)) {
        this.chunk[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
        if (this.filled === this.chunk.length) this.send();
      }
    }
    return !this.closed;
  }

  send() {
    const chunk = this.chunk.slice();
    const level = Math.sqrt(chunk.reduce((sum, sample) => sum + (sample / 32768) ** 2, 0) / chunk.length);
    this.port.postMessage({ samples: chunk, level }, [chunk.buffer]);
    this.filled = 0;
  }
}

globalThis.registerProcessor?.("capture", Capture);
