/**
 * What stands within a line of markdown: emphasis, code, links. Images are shown as links: a page that
 * fetched them would tell their server what was said.
 */

import { h } from "./dom.js";

const MAX_DEPTH = 8;
const LINK =
  /!?\[((?:[^[\]\n\\]|\\.){0,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)>?(?:\s+"[^"\n]{0,500}")?\s*\)/y;
const BARE_LINK = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const EMPHASIS = [
  ["***", "strong"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/**
 * The nodes of lines of text ({ text, at }); line breaks stay. Adds to `marks` where each text node comes
 * from.
 */
export function inline(lines, marks) {
  const text = lines.map((line) => line.text).join("\n");
  const starts = [];
  let at = 0;
  for (const line of lines) {
    starts.push({ from: at, at: line.at });
    at += line.text.length + 1;
  }
  return new Scanner(text, starts, marks).nodes(0, text.length, 0);
}

class Scanner {
  constructor(text, starts, marks) {
    this._text = text;
    this._starts = starts;
    this._marks = marks;
    /** Closing marks that are known to come no more, so that many open ones cost no more than one. */
    this._none = new Map();
  }

  /** Of text[from:to]. */
  nodes(from, to, depth) {
    const found = [];
    let plain = from,
      i = from;
    while (i < to) {
      const match = this._at(i, to, depth);
      if (!match) {
        i += 1;
        continue;
      }
      this._plain(found, plain, i);
      found.push(...match.nodes);
      plain = i = match.end;
    }
    this._plain(found, plain, to);
    return found;
  }

  /** What begins at `i`: { nodes, end }, or null. */
  _at(i, to, depth) {
    switch (this._text[i]) {
      case "\\":
        return this._escaped(i, to);
      case "`":
        return this._code(i, to);
      case "!":
        return this._text[i + 1] === "[" ? this._link(i, to, depth) : null;
      case "[":
        return this._link(i, to, depth);
      case "h":
        return this._bareLink(i, to);
      case "*":
      case "_":
      case "~":
        return depth < MAX_DEPTH ? this._emphasis(i, to, depth) : null;
      default:
        return null;
    }
  }

  _escaped(i, to) {
    if (i + 1 >= to || !PUNCTUATION.test(this._text[i + 1])) return null;
    return { nodes: this._texts(i + 1, i + 2), end: i + 2 };
  }

  _code(i, to) {
    const [ticks] = /^`+/.exec(this._text.slice(i, Math.min(to, i + 32)));
    const inside = i + ticks.length;
    const close = this._find(
      ticks,
      inside,
      to,
      (at) => this._text[at - 1] !== "`" && this._text[at + ticks.length] !== "`",
    );
    if (close < 0) return { nodes: this._texts(i, inside), end: inside };
    const padded = close - inside > 2 && this._text[inside] === " " && this._text[close - 1] === " " ? 1 : 0;
    return {
      nodes: [h("code", {}, this._texts(inside + padded, close - padded))],
      end: close + ticks.length,
    };
  }

  _link(i, to, depth) {
    LINK.lastIndex = i;
    const match = LINK.exec(this._text);
    if (!match || LINK.lastIndex > to || depth >= MAX_DEPTH) return null;
    const url = safe(match[2]);
    if (!url) return null;
    const label = i + match[0].indexOf("[") + 1;
    const inside = match[1]
      ? this.nodes(label, label + match[1].length, MAX_DEPTH)
      : [document.createTextNode(url)];
    return { nodes: [anchor(url, inside)], end: LINK.lastIndex };
  }

  _bareLink(i, to) {
    if (/\w/.test(this._text[i - 1] ?? "")) return null;
    BARE_LINK.lastIndex = i;
    const match = BARE_LINK.exec(this._text);
    if (!match) return null;
    let link = match[0].slice(0, to - i).replace(/[.,;:!?*_~]+$/, "");
    if (link.endsWith(")") && !link.includes("(")) link = link.slice(0, -1);
    const url = safe(link);
    return url ? { nodes: [anchor(url, this._texts(i, i + link.length))], end: i + link.length } : null;
  }

  _emphasis(i, to, depth) {
    for (const [mark, tag] of EMPHASIS) {
      if (!this._text.startsWith(mark, i)) continue;
      const inside = i + mark.length;
      const within = mark[0] === "_" && /\w/.test(this._text[i - 1] ?? "");
      if (within || inside >= to || /\s/.test(this._text[inside])) continue;
      const close = this._find(mark, inside + 1, to, (at) => this._closes(mark, at));
      if (close < 0) continue;
      const nodes = this.nodes(inside, close, depth + 1);
      return { nodes: [h(tag, {}, mark === "***" ? h("em", {}, nodes) : nodes)], end: close + mark.length };
    }
    const [run] = /^[*_~]+/.exec(this._text.slice(i, Math.min(to, i + 64)));
    return { nodes: this._texts(i, i + run.length), end: i + run.length };
  }

  _closes(mark, at) {
    const before = this._text[at - 1],
      behind = this._text[at + mark.length] ?? "";
    if (/[\s\\]/.test(before) || (mark[0] === "_" && /\w/.test(behind))) return false;
    return mark.length > 1 || (before !== mark && behind !== mark);
  }

  /** Where `mark` stands next and `fits`, before `to`; -1 if it does not. */
  _find(mark, from, to, fits) {
    if (from >= (this._none.get(mark) ?? Infinity)) return -1;
    let at = this._text.indexOf(mark, from);
    while (at >= 0 && !fits(at)) at = this._text.indexOf(mark, at + 1);
    if (at < 0) this._none.set(mark, Math.min(from, this._none.get(mark) ?? Infinity));
    return at >= 0 && at + mark.length <= to ? at : -1;
  }

  _plain(found, from, to) {
    if (from < to) found.push(...this._texts(from, to));
  }

  /** Text nodes of text[from:to], one a line, so that each is a piece of the source as it stands. */
  _texts(from, to) {
    const nodes = [];
    let low = 0;
    for (let at = from; at < to;) {
      while (low + 1 < this._starts.length && this._starts[low + 1].from <= at) low += 1;
      const end = Math.min(to, this._starts[low + 1]?.from ?? to);
      const node = document.createTextNode(this._text.slice(at, end));
      const source = this._starts[low].at + at - this._starts[low].from;
      this._marks.push({ node, from: source, to: source + node.length });
      nodes.push(node);
      at = end;
    }
    return nodes;
  }
}

function anchor(url, nodes) {
  return h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, nodes);
}

/** The address if a click on it does no more than to open it, else null. */
function safe(url) {
  try {
    const parsed = new URL(url);
    return ["http:", "https:", "mailto:"].includes(parsed.protocol) ? parsed.href : null;
  } catch {
    return null;
  }
}
