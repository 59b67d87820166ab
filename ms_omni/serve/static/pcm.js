// Samples and bytes: 16 bit PCM, base64, WAV. No DOM, so that it runs under node too.

/** Float samples in [-1, 1] to 16 bit; what is louder is clipped. */
export function toInt16(floats) {
  const out = new Int16Array(floats.length);
  for (let i = 0; i < floats.length; i++) {
    out[i] = Math.max(-32768, Math.min(32767, Math.round(floats[i] * 32768)));
  }
  return out;
}

export function toFloat32(int16) {
  const out = new Float32Array(int16.length);
  for (let i = 0; i < int16.length; i++) out[i] = int16[i] / 32768;
  return out;
}

/** Any typed array's bytes as base64. */
export function toBase64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  // String.fromCharCode takes its arguments from the stack, so not all at once.
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Little-endian 16 bit samples of base64. */
export function samplesOfBase64(text) {
  const bytes = fromBase64(text);
  if (bytes.length % 2) throw new RangeError(`PCM16 of ${bytes.length} bytes: expected an even number`);
  return new Int16Array(bytes.buffer);
}

/** Chunks of Int16Array as one. */
export function concat(chunks) {
  const out = new Int16Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    out.set(chunk, at);
    at += chunk.length;
  }
  return out;
}

/** Mono 16 bit samples as the bytes of a WAV file. */
export function toWav(samples, rate) {
  const bytes = new Uint8Array(44 + samples.byteLength);
  const view = new DataView(bytes.buffer);
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + samples.byteLength, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, samples.byteLength, true);
  bytes.set(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength), 44);
  return bytes;
}

/** The loudest sample of each of `count` equal parts, 0 to 1: what a waveform is drawn from. */
export function peaks(samples, count) {
  const out = new Float32Array(count);
  for (let part = 0; part < count; part++) {
    const end = Math.floor(((part + 1) * samples.length) / count);
    for (let i = Math.floor((part * samples.length) / count); i < end; i++) {
      out[part] = Math.max(out[part], Math.abs(samples[i]) / 32768);
    }
  }
  return out;
}
