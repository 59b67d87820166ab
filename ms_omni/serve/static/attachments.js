// Pictures, sounds and videos that go with a message: picked, dropped, pasted or recorded.

import { $, make, icon, toast } from "./dom.js";
import { t } from "./i18n.js";
import { toBase64 } from "./pcm.js";

const KINDS = ["image", "audio", "video"];
// Browsers do not know these endings' types everywhere.
const ENDINGS = { flac: "audio", opus: "audio", m4a: "audio", aac: "audio", ogg: "audio", mkv: "video", mov: "video", avi: "video" };
const FORMATS = { mpeg: "mp3", "x-wav": "wav", wave: "wav", "vnd.wave": "wav", "x-flac": "flac", mp4: "m4a", "x-m4a": "m4a" };

const ending = (file) => file.name.split(".").pop().toLowerCase();

function kindOf(file) {
  const kind = file.type.split("/")[0];
  return KINDS.includes(kind) ? kind : ENDINGS[ending(file)];
}

/** The part of a message, as OpenAI has it, for a file. */
async function partOf(file, kind) {
  const data = toBase64(new Uint8Array(await file.arrayBuffer()));
  if (kind === "audio") {
    const subtype = file.type.split("/")[1]?.split(";")[0] ?? ending(file);
    return { type: "input_audio", input_audio: { data, format: FORMATS[subtype] ?? subtype } };
  }
  const type = kind === "image" ? "image_url" : "video_url";
  return { type, [type]: { url: `data:${file.type || `${kind}/${ending(file)}`};base64,${data}` } };
}

/** What shows an attachment in the conversation. */
export function preview({ kind, url, name }) {
  if (kind === "image") return make("img", { src: url, alt: name, className: "shown" });
  return make(kind, { src: url, controls: true, className: "shown", preload: "metadata", "aria-label": name });
}

export class Attachments {
  constructor() {
    this.list = []; // {kind, name, url, part: Promise of a message's part}
  }

  add(files) {
    for (const file of files) {
      const kind = kindOf(file);
      if (!kind) {
        toast(t("badFile", { name: file.name }));
        continue;
      }
      this.list.push({ kind, name: file.name, url: URL.createObjectURL(file), part: partOf(file, kind) });
    }
    this.show();
  }

  show() {
    $("attached").replaceChildren(
      ...this.list.map((one) => {
        const drop = () => {
          this.list = this.list.filter((other) => other !== one);
          this.show();
          $("prompt").focus();
        };
        const label = t("remove", { name: one.name });
        const picture = one.kind === "image" ? make("img", { src: one.url, alt: "" }) : icon(one.kind === "audio" ? "mark" : "camera");
        const close = make("button", { type: "button", className: "remove", "aria-label": label, title: label, onclick: drop }, icon("close"));
        return make("li", {}, picture, make("span", { textContent: one.name }), close);
      }),
    );
    document.dispatchEvent(new Event("attached"));
  }

  /** All of them, and none is left. */
  take() {
    const list = this.list;
    this.list = [];
    this.show();
    return list;
  }
}

/** Drop anywhere, paste into the message, pick with the button. */
export function takeFiles(attachments) {
  $("attach").onclick = () => $("files").click();
  $("files").onchange = () => {
    attachments.add($("files").files);
    $("files").value = "";
    $("prompt").focus();
  };
  $("prompt").addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attachments.add(event.clipboardData.files);
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  // Browsers say again and again that something is dragged over the page, but not always that it has left.
  let gone;
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
    clearTimeout(gone);
    gone = setTimeout(() => ($("drop").hidden = true), 600);
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    attachments.add(event.dataTransfer.files);
    $("prompt").focus();
  });
}
