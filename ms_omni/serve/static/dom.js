// Few helpers over the DOM.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (`aria-…`, `data-…`, `role`, `for`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `icons.svg#${name}`);
  svg.append(use);
  return svg;
}

export const setIcon = (button, name) => button.querySelector("use").setAttribute("href", `icons.svg#${name}`);

/** A message that goes by itself; with `action` {label, run} it has a button. */
export function toast(text, action) {
  const note = make("div", { className: "toast" }, make("span", { textContent: text }));
  const remove = () => note.remove();
  if (action) {
    const run = () => (remove(), action.run());
    note.append(make("button", { type: "button", className: "pill", textContent: action.label, onclick: run }));
  }
  // An open dialog is above everything else, so its messages have to be inside of it.
  (document.querySelector("dialog[open]") ?? document.body).append($("toasts"));
  $("toasts").replaceChildren(note);
  setTimeout(remove, action ? 10000 : 7000);
}

/** Read to users of a screen reader. */
export const announce = (text) => ($("announcer").textContent = text);

export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Offers bytes as a file. */
export function download(bytes, type, name) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
