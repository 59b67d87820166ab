// The server's API. Addresses are relative, so that the page also works behind a proxy's path.

import { t } from "./i18n.js";
import { settings } from "./settings.js";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** A response that is fine, or an ApiError with what the server said. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (settings.key) headers.Authorization = `Bearer ${settings.key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("noServer"), 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = t("httpError", { status: response.status });
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // Not OpenAI's error object: a proxy's page, say. The status is all that there is to tell.
  }
  if (response.status === 401) message = `${t("wrongKey")} ${message}`;
  const seconds = response.headers.get("Retry-After");
  if (seconds) message += ` ${t("retryAfter", { seconds })}`;
  throw new ApiError(message, response.status);
}

export const models = async () => (await (await ask("v1/models")).json()).data.map((model) => model.id);

/** {voices: [names], default}; none if the server has no speech. */
export async function voices() {
  try {
    const { voices: list = [], default: first } = await (await ask("v1/audio/voices")).json();
    const names = list.map((voice) => (typeof voice === "string" ? voice : voice.id));
    return { voices: names, default: first ?? names[0] };
  } catch (error) {
    if (error.status === 404) return { voices: [], default: undefined };
    throw error;
  }
}

export function complete(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** A WebSocket cannot carry headers: the key goes as OpenAI's subprotocol for browsers. */
export function realtime() {
  const address = new URL(`v1/realtime?model=${encodeURIComponent(settings.model)}`, document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const protocols = ["realtime"];
  if (settings.key) protocols.push(`openai-insecure-api-key.${settings.key}`);
  return new WebSocket(address, protocols);
}
