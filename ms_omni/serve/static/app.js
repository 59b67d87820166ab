// The page's start: language, theme, settings, the model and its voices.

import { models, voices } from "./api.js";
import { Call } from "./call.js";
import { Chat } from "./chat.js";
import { $, icon, make, toast } from "./dom.js";
import { languageOf, speak, t } from "./i18n.js";
import { bind, isMiniature, load, openSettings, save, settings } from "./settings.js";

load();
const dark = matchMedia("(prefers-color-scheme: dark)");
const language = () => settings.language || languageOf(navigator.language);

function showTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

function showLanguage() {
  speak(language());
  $("language").textContent = t("languageShort");
  if ($("model").textContent) ideas();
}

showTheme();
showLanguage();
const chat = new Chat();
new Call();
bind((name) => {
  if (name === "key" || name === "model") connect();
});

$("language").onclick = () => {
  settings.language = language() === "zh" ? "en" : "zh";
  save();
  showLanguage();
};
$("theme").onclick = () => {
  const now = settings.theme || (dark.matches ? "dark" : "light");
  settings.theme = now === "dark" ? "light" : "dark";
  save();
  showTheme();
};
$("open-settings").onclick = () => openSettings();

const options = (select, names, chosen) =>
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name, selected: name === chosen })));

/** Asks the server what it has. */
async function connect() {
  try {
    const names = await models();
    const found = await voices(); // 503 as long as the model is being loaded
    if (!names.includes(settings.model)) settings.model = names[0] ?? "";
    $("model").textContent = settings.model;
    options($("settings").querySelector("[name=model]"), names, settings.model);
    const { voices: list, default: first } = found;
    if (!list.includes(settings.voice)) settings.voice = first ?? "";
    options($("settings").querySelector("[name=voice]"), list, settings.voice);
    $("start-call").hidden = !list.length;
    ideas();
  } catch (error) {
    if (error.status === 503) {
      $("model").textContent = t("loading");
      setTimeout(connect, 2000);
      return;
    }
    toast(error.message, error.status === 401 ? { label: t("settings"), run: () => openSettings("key") } : { label: t("retry"), run: connect });
  }
}

/** What one could begin with. */
function ideas() {
  const miniature = isMiniature();
  $("hint").textContent = t(miniature ? "hintMiniature" : "hint");
  const say = (text) => [
    "send",
    text,
    () => {
      $("prompt").value = text;
      $("composer").requestSubmit();
    },
  ];
  const list = [
    ["call", t("askCall"), () => $("start-call").click(), !$("start-call").hidden],
    ["mic", t("askRecord"), () => $("record").click()],
    ["attach", t("askPicture"), () => $("attach").click()],
    ...(miniature ? [say(t("askSum")), say(t("askDigits"))] : []),
  ];
  $("ideas").replaceChildren(
    ...list
      .filter(([, , , possible = true]) => possible)
      .map(([name, text, run]) => make("button", { type: "button", className: "pill", onclick: run }, icon(name), make("span", { textContent: text }))),
  );
}

connect();
chat.refresh();
if (matchMedia("(pointer: fine)").matches) $("prompt").focus(); // on a phone it would open the keyboard
