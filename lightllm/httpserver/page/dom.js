/**
 * Building elements without markup: text only ever becomes text nodes, so nothing that a model writes is
 * interpreted.
 */

const SVG = "http://www.w3.org/2000/svg";

/** Strokes of the icons, in a square of 16. */
const ICONS = {
  sliders: "M2 4.5h7M13 4.5h1M2 11.5h1M7 11.5h7M11 2.5v4M5 9.5v4",
  image: "M2.5 3h11v10h-11zM3 11.5l3-3.5 2.5 2.5L10.5 8.5 13 11M5.5 5.75v.01",
  plus: "M8 3v10M3 8h10",
  terminal: "M2.5 4.5 6 8l-3.5 3.5M8 12h5.5",
  send: "M8 13.5v-11M3.5 7 8 2.5 12.5 7",
  stop: "M4.5 4.5h7v7h-7z",
  copy: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3",
  check: "M3 8.5 6.5 12 13 4.5",
  edit: "M3 13l.6-2.8L11 2.8l2.2 2.2-7.4 7.4z",
  again: "M13 8a5 5 0 1 1-1.6-3.7M13 2v3h-3",
  remove: "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9",
  close: "M4 4l8 8M12 4l-8 8",
  sun: "M8 5.25a2.75 2.75 0 1 0 0 5.5 2.75 2.75 0 0 0 0-5.5M8 1.5v1.2M8 13.3v1.2M1.5 8h1.2M13.3 8h1.2M3.4 3.4l.85.85M11.75 11.75l.85.85M3.4 12.6l.85-.85M11.75 4.25l.85-.85",
  moon: "M13 9.5A5.5 5.5 0 1 1 6.5 3 4.5 4.5 0 0 0 13 9.5z",
  screen: "M2.5 3h11v7.5h-11zM6 13.5h4M8 10.5v3",
};

/**
 * An element with attributes and children. `onclick` and the like are listeners; false, null and undefined
 * leave an attribute out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  const stroke = {
    fill: "none",
    stroke: "currentColor",
    "stroke-width": 1.4,
    "stroke-linecap": "round",
    "stroke-linejoin": "round",
  };
  return svg(
    "svg",
    { viewBox: "0 0 16 16", "aria-hidden": "true", ...stroke },
    svg("path", { d: ICONS[name] }),
  );
}

/** A button with an icon alone; its label is read aloud and shown as a tip. */
export function iconButton(name, label, onclick, more = {}) {
  return h(
    "button",
    { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...more },
    icon(name),
  );
}

/** Buttons of index.html say with `data-icon` what is drawn in them. */
export function drawIcons(root) {
  for (const button of root.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
}

export function byId(id) {
  return document.getElementById(id);
}

/** Says something to a screen reader. */
export function say(text) {
  byId("said").textContent = text;
}

/** Copies a text; the button shows that it worked. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // pages of http:// on another machine have no clipboard
  }
  const drawn = button.querySelector("svg");
  drawn.replaceWith(icon("check"));
  setTimeout(() => button.querySelector("svg").replaceWith(icon("copy")), 1200);
  say("Copied");
}

function copyBySelection(text) {
  const field = h("textarea", { class: "hidden" });
  field.value = text;
  const place = document.querySelector("dialog[open]") ?? document.body;
  place.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
