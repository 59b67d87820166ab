// What the user chose, kept in this browser; the key only if he asks for it.

import { $ } from "./dom.js";
import { t } from "./i18n.js";

const PLACE = "ms-omni";
const DEFAULTS = {
  model: "", voice: "", modalities: "audio", system: "", videoSound: true, temperature: "", topP: "", topK: "", maxTokens: "",
  seed: "", threshold: "0.5", silence: "500", push: false, tools: "", key: "", keepKey: false, language: "", theme: "",
};

export const settings = { ...DEFAULTS };

export function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE) ?? "{}");
    for (const name of Object.keys(DEFAULTS)) if (typeof kept[name] === typeof DEFAULTS[name]) settings[name] = kept[name];
  } catch {
    // Storage that is blocked or broken: the page works with its defaults.
  }
}

export function save() {
  const kept = { ...settings, key: settings.keepKey ? settings.key : "" };
  try {
    localStorage.setItem(PLACE, JSON.stringify(kept));
  } catch {
    // As above.
  }
}

function show() {
  for (const field of $("settings").querySelector("form").elements) {
    if (!(field.name in settings)) continue;
    if (field.type === "checkbox") field.checked = settings[field.name];
    else field.value = settings[field.name];
  }
}

/** Opens the settings, at a field if it is given. */
export function openSettings(name) {
  show();
  if (!$("settings").open) $("settings").showModal();
  if (name) $("settings").querySelector(`[name=${name}]`).focus();
}

/** Takes what is changed in the settings; changed(name) follows. */
export function bind(changed) {
  const form = $("settings").querySelector("form");
  form.addEventListener("change", ({ target }) => {
    if (!target.reportValidity()) return;
    settings[target.name] = target.type === "checkbox" ? target.checked : target.value;
    save();
    changed(target.name);
  });
  $("reset").onclick = () => {
    const { language, theme, model, voice } = settings;
    Object.assign(settings, DEFAULTS, { language, theme, model, voice });
    save();
    show();
    changed("key");
  };
  $("settings").addEventListener("click", ({ target }) => {
    if (target === $("settings")) $("settings").close(); // beside the form
  });
}

/** The example model knows a small world: the page suggests what it can answer. */
export const isMiniature = () => /miniature/i.test(settings.model);

const number = (name) => (settings[name] === "" ? undefined : Number(settings[name]));

/** The fields of a chat completion that follow from the settings; undefined ones are not sent. */
export function chatFields() {
  const sound = settings.modalities === "audio" && settings.voice !== ""; // a model without voices only writes
  const fields = {
    model: settings.model,
    modalities: sound ? ["text", "audio"] : ["text"],
    audio: sound ? { voice: settings.voice, format: "pcm16" } : undefined,
    temperature: number("temperature"),
    top_p: number("topP"),
    top_k: number("topK"),
    max_completion_tokens: number("maxTokens"),
    seed: number("seed"),
  };
  if (settings.tools.trim()) {
    try {
      fields.tools = JSON.parse(settings.tools);
      if (!Array.isArray(fields.tools)) throw new TypeError(typeof fields.tools);
    } catch (error) {
      throw new Error(t("badTools", { reason: error.message }));
    }
  }
  return fields;
}

/** A realtime session of these settings; how it samples is this server's extension. */
export function sessionFields() {
  const format = { type: "audio/pcm", rate: 24000 };
  const detection = {
    type: "server_vad",
    threshold: number("threshold"),
    silence_duration_ms: number("silence"),
    create_response: true,
    interrupt_response: true,
  };
  return {
    type: "realtime",
    output_modalities: ["audio"],
    // The miniature answers questions about what it hears, so in a call it needs one to begin with.
    instructions: settings.system.trim() || (isMiniature() ? "What number do you hear?" : ""),
    max_output_tokens: number("maxTokens"),
    temperature: number("temperature"),
    top_p: number("topP"),
    top_k: number("topK"),
    seed: number("seed"),
    audio: {
      input: { format, turn_detection: settings.push ? null : detection, transcription: { model: settings.model } },
      output: { format, voice: settings.voice },
    },
  };
}
