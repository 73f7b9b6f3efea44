/**
 * The probabilities of an answer's tokens: shown for the token under the pointer, or for the one that the
 * arrow keys have come to.
 *
 * The text on the screen stays as it is. Where a token lies is worked out from the text nodes, which know
 * their place in the source (`Rendered.marks`), and shown with the browser's own highlights, without an
 * element for each token.
 */

import { byId, h } from "./dom.js";

/** Tokens below these probabilities are tinted, the more the less likely they were. */
const TINTS = [
  ["unlikely", 0.1],
  ["unsure", 0.35],
  ["likely", 0.7],
];
const CAN_HIGHLIGHT = typeof Highlight === "function" && CSS.highlights !== undefined;

/**
 * Where each token stands in `content`: [{ from, to, entry }] without those that made no text of it
 * (reasoning, markers).
 */
export function placeTokens(tokens, content) {
  const decoder = new TextDecoder();
  const ends = [];
  let text = "";
  for (const [token] of tokens) {
    text += typeof token === "string" ? token : decoder.decode(Uint8Array.from(token), { stream: true });
    ends.push(text.length);
  }
  const offset = text.lastIndexOf(content);
  if (offset < 0 || !content) return [];
  const placed = [];
  let start = 0;
  tokens.forEach((entry, i) => {
    const from = Math.max(0, start - offset),
      to = Math.min(content.length, ends[i] - offset);
    start = ends[i];
    if (to > from) placed.push({ from, to, entry });
  });
  return placed;
}

export function textOf(token) {
  return typeof token === "string" ? token : new TextDecoder().decode(Uint8Array.from(token));
}

/** Answers whose tokens can be looked at. One card for all of them. */
export class TokenInspector {
  constructor() {
    this._card = byId("token-card");
    this._views = new Map();
    this._current = null;
    this._tints = TINTS.map(([name, below]) => ({ below, highlight: this._highlight(name) }));
    this._here = this._highlight("token");
    addEventListener("scroll", () => this.hide(), { passive: true });
  }

  _highlight(name) {
    if (!CAN_HIGHLIGHT) return null;
    const highlight = new Highlight();
    CSS.highlights.set(name, highlight);
    return highlight;
  }

  /** Lets the tokens of `message` be looked at in `element`, whose text nodes `marks` tell apart. */
  attach(element, message, marks) {
    this.detach(element);
    const tokens = placeTokens(message.tokens ?? [], message.content);
    if (!tokens.length) return;
    const view = { tokens, marks, at: -1, ranges: [], stop: new AbortController() };
    this._views.set(element, view);
    element.tabIndex = 0;
    element.setAttribute(
      "aria-description",
      "Arrow keys move through the tokens and say how likely each was",
    );
    const listen = (name, handler) => element.addEventListener(name, handler, { signal: view.stop.signal });
    listen("pointermove", (event) => this._point(view, event));
    listen("pointerdown", (event) => this._point(view, event));
    listen("pointerleave", () => this.hide());
    listen("blur", () => this.hide());
    listen("keydown", (event) => this._key(view, event));
    this._tint(view);
  }

  detach(element) {
    const view = this._views.get(element);
    if (!view) return;
    view.stop.abort();
    for (const { highlight, range } of view.ranges) highlight.delete(range);
    this._views.delete(element);
    element.removeAttribute("tabindex");
    element.removeAttribute("aria-description");
    this.hide();
  }

  hide() {
    this._card.hidden = true;
    this._current = null;
    this._here?.clear();
  }

  _tint(view) {
    if (!CAN_HIGHLIGHT) return;
    for (const token of view.tokens) {
      const tint = this._tints.find(({ below }) => Math.exp(token.entry[1]) < below);
      if (!tint) continue;
      for (const range of rangesOf(view.marks, token)) {
        tint.highlight.add(range);
        view.ranges.push({ highlight: tint.highlight, range });
      }
    }
  }

  _point(view, event) {
    const place = placeUnder(event.clientX, event.clientY, view.marks);
    const index = place === null ? -1 : view.tokens.findIndex(({ from, to }) => from <= place && place < to);
    if (index < 0) this.hide();
    else this._show(view, index);
  }

  _key(view, event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (event.target !== event.currentTarget || (!step && event.key !== "Escape")) return;
    event.preventDefault();
    if (step) this._show(view, Math.max(0, Math.min(view.tokens.length - 1, view.at + step)), true);
    else this.hide();
  }

  _show(view, index, scroll = false) {
    const token = view.tokens[index];
    if (this._current === token) return;
    const ranges = rangesOf(view.marks, token);
    if (!ranges.length) view.at = index; // it is a marker of the layout and stands nowhere
    const range = ranges[0] ?? rangesOf(view.marks, nearest(view, index))[0];
    if (!range) return;
    if (scroll) range.startContainer.parentElement.scrollIntoView({ block: "nearest" });
    Object.assign(view, { at: index });
    this._here?.clear();
    for (const each of ranges) this._here?.add(each);
    this._card.replaceChildren(...card(token.entry));
    this._card.hidden = false;
    place(this._card, range.getBoundingClientRect());
    this._current = token;
  }
}

function nearest(view, index) {
  return view.tokens.slice(index).find((token) => rangesOf(view.marks, token).length) ?? view.tokens[index];
}

/** The ranges of the page that show source[from:to]. */
function rangesOf(marks, { from, to }) {
  const found = [];
  for (const mark of marks) {
    if (mark.to <= from || mark.from >= to) continue;
    const range = document.createRange();
    range.setStart(mark.node, Math.max(0, from - mark.from));
    range.setEnd(mark.node, Math.min(mark.node.length, to - mark.from));
    found.push(range);
  }
  return found;
}

/** The place in the source of the character under a point; null beside the text. */
function placeUnder(x, y, marks) {
  const caret = document.caretPositionFromPoint?.(x, y);
  const range = caret ? null : document.caretRangeFromPoint?.(x, y);
  const node = caret?.offsetNode ?? range?.startContainer,
    offset = caret?.offset ?? range?.startOffset;
  const mark = marks.find((each) => each.node === node);
  if (!mark) return null;
  for (const start of [offset, offset - 1]) {
    if (start < 0 || start >= node.length) continue;
    const around = document.createRange();
    around.setStart(node, start);
    around.setEnd(node, start + 1);
    for (const box of around.getClientRects()) {
      if (x >= box.left && x <= box.right && y >= box.top && y <= box.bottom) return mark.from + start;
    }
  }
  return null;
}

function card([token, logprob, others]) {
  const chosen = textOf(token);
  const rows = others.map(([text, each]) => row(text, each, text === chosen));
  return [
    h("p", { class: "chosen" }, h("code", {}, visible(chosen)), h("span", {}, percent(logprob))),
    h("table", {}, h("caption", { class: "hidden" }, "The likeliest tokens"), h("tbody", {}, rows)),
  ];
}

function row(text, logprob, isChosen) {
  const bar = h("span", { class: "bar-of" });
  bar.style.setProperty("--share", Math.exp(logprob).toFixed(4));
  return h(
    "tr",
    { class: isChosen ? "is-chosen" : null },
    h("th", { scope: "row" }, h("code", {}, visible(text))),
    h("td", {}, bar),
    h("td", { class: "share" }, percent(logprob)),
  );
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share > 0 && share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}

function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}

/** Above the box, or below it where there is no room. */
function place(element, box) {
  const { offsetWidth: width, offsetHeight: height } = element;
  const left = Math.max(
    8,
    Math.min(document.documentElement.clientWidth - width - 8, box.left + box.width / 2 - width / 2),
  );
  const above = box.top - height - 8;
  element.style.left = `${left}px`;
  element.style.top = `${above > 60 ? above : box.bottom + 8}px`;
}
