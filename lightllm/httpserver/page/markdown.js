/**
 * Markdown as models write it, as elements. The source is never parsed as HTML: a tag in it is shown as it
 * stands.
 *
 * Every text node knows where in the source it comes from (`Rendered.marks`), so that a place on the screen
 * leads to the token that it was made of. Top-level blocks whose source is unchanged keep their elements
 * while an answer grows.
 */

import { h, iconButton, copy } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,5})([-*+]|\d{1,9}[.)])( {1,4}(?=\S)| *$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** A markdown source within an element, which changes as the source grows. */
export class Rendered {
  constructor(element) {
    this.element = element;
    this._blocks = [];
  }

  /** [{ node, from, to }] in the order of the source. */
  get marks() {
    return this._blocks.flatMap(({ at, marks }) =>
      marks.map((m) => ({ node: m.node, from: at + m.from, to: at + m.to })),
    );
  }

  update(source) {
    const parts = split(linesOf(source));
    let same = 0;
    while (same < parts.length && parts[same].source === this._blocks[same]?.source) same += 1;
    for (const block of this._blocks.splice(same)) block.element.remove();
    for (const part of parts.slice(same)) {
      const marks = [];
      const element = build(part, marks, 0);
      this._blocks.push({
        source: part.source,
        at: part.lines[0].at,
        element,
        marks: marks.map(relative(part.lines[0].at)),
      });
      this.element.append(element);
    }
    for (let i = 0; i < same; i += 1) this._blocks[i].at = parts[i].lines[0].at;
  }
}

function relative(at) {
  return (mark) => ({ node: mark.node, from: mark.from - at, to: mark.to - at });
}

/** Lines as { text, at }, `at` where in the source they begin. */
function linesOf(source) {
  let at = 0;
  return source.split("\n").map((text) => {
    const line = { text, at };
    at += text.length + 1;
    return line;
  });
}

/** Blocks as { kind, lines, source }. */
function split(lines) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    if (!lines[i].text.trim()) {
      i += 1;
      continue;
    }
    const [kind, end] = blockAt(lines, i);
    const taken = lines.slice(i, end);
    blocks.push({ kind, lines: taken, source: `${kind}\n${taken.map((line) => line.text).join("\n")}` });
    i = end;
  }
  return blocks;
}

/** What begins with line `i`, and the line behind it. */
function blockAt(lines, i) {
  const { text } = lines[i];
  const fence = FENCE.exec(text);
  if (fence) return ["code", fenceEnd(lines, i + 1, fence[1])];
  if (HEADING.test(text)) return ["heading", i + 1];
  if (RULE.test(text)) return ["rule", i + 1];
  if (QUOTE.test(text)) return ["quote", runEnd(lines, i + 1, (line) => QUOTE.test(line) || isLazy(line))];
  if (ITEM.test(text)) return ["list", listEnd(lines, i)];
  if (
    text.includes("|") &&
    i + 1 < lines.length &&
    DELIMITERS.test(lines[i + 1].text) &&
    lines[i + 1].text.includes("|")
  ) {
    return ["table", runEnd(lines, i + 2, (line) => line.includes("|") && line.trim() !== "")];
  }
  return ["paragraph", runEnd(lines, i + 1, isLazy)];
}

function runEnd(lines, from, belongs) {
  let end = from;
  while (end < lines.length && belongs(lines[end].text)) end += 1;
  return end;
}

function fenceEnd(lines, from, fence) {
  for (let i = from; i < lines.length; i += 1) {
    const text = lines[i].text.trim();
    if (text.length >= fence.length && text === fence[0].repeat(text.length)) return i + 1;
  }
  return lines.length;
}

/** Whether a line goes on with the paragraph above it. */
function isLazy(text) {
  return text.trim() !== "" && ![FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(text));
}

/**
 * A list ends with a line that is not indented, behind an empty one, or with one that begins something else.
 */
function listEnd(lines, from) {
  const ordered = /\d/.test(ITEM.exec(lines[from].text)[2]);
  let end = from + 1,
    empty = false;
  for (; end < lines.length; end += 1) {
    const { text } = lines[end];
    if (!text.trim()) {
      empty = true;
      continue;
    }
    const item = RULE.test(text) ? null : ITEM.exec(text);
    const indented = /^ {2,}/.test(text);
    if (!indented && (item ? /\d/.test(item[2]) !== ordered : empty || !isLazy(text))) break;
    empty = false;
  }
  while (!lines[end - 1].text.trim()) end -= 1;
  return end;
}

// -- elements

const BUILDERS = { code, heading, rule: () => h("hr"), quote, list, table, paragraph };

function build(block, marks, depth) {
  return depth > MAX_DEPTH ? paragraph(block.lines, marks) : BUILDERS[block.kind](block.lines, marks, depth);
}

function children(lines, marks, depth) {
  return split(lines).map((block) => build(block, marks, depth + 1));
}

function paragraph(lines, marks) {
  return h(
    "p",
    {},
    inline(
      lines.map((line) => cut(line, /^\s*/.exec(line.text)[0].length)),
      marks,
    ),
  );
}

function heading([line], marks) {
  const [start, { length }] = HEADING.exec(line.text);
  const text = line.text.slice(start.length).replace(/(^|[ \t])#+[ \t]*$/, "");
  return h(`h${Math.min(6, length + 2)}`, {}, inline([{ text, at: line.at + start.length }], marks));
}

function quote(lines, marks, depth) {
  return h(
    "blockquote",
    {},
    children(
      lines.map((line) => cut(line, QUOTE.exec(line.text)?.[0].length ?? 0)),
      marks,
      depth,
    ),
  );
}

function list(lines, marks, depth) {
  const first = ITEM.exec(lines[0].text);
  const indent = first[1].length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line.text);
    if (
      item &&
      (items.length === 0 || item[1].length <= indent + 1) &&
      !(items.length && RULE.test(line.text))
    ) {
      items.push({ width: item[0].length, lines: [cut(line, item[0].length)] });
    } else {
      const { width, lines: inner } = items.at(-1);
      inner.push(cut(line, Math.min(width, /^ */.exec(line.text)[0].length)));
    }
  }
  const loose = lines.some((line) => !line.text.trim());
  const number = parseInt(first[2], 10);
  const start = Number.isNaN(number) || number === 1 ? null : number;
  return h(
    Number.isNaN(number) ? "ul" : "ol",
    { start, class: loose ? "loose" : null },
    items.map((item) => h("li", {}, unwrapped(children(item.lines, marks, depth), loose))),
  );
}

/** The items of a tight list have no paragraphs. */
function unwrapped(elements, loose) {
  return loose
    ? elements
    : elements.flatMap((element) => (element.tagName === "P" ? [...element.childNodes] : [element]));
}

function table(lines, marks) {
  const sides = cells(lines[1]).map(({ text }) =>
    text.endsWith(":") ? (text.startsWith(":") ? "middle" : "right") : null,
  );
  const row = (line, tag) =>
    h(
      "tr",
      {},
      cells(line)
        .slice(0, sides.length)
        .map((cell, column) =>
          h(tag, { class: sides[column], scope: tag === "th" ? "col" : null }, inline([cell], marks)),
        ),
    );
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" },
    h(
      "table",
      {},
      h("thead", {}, row(lines[0], "th")),
      h(
        "tbody",
        {},
        lines.slice(2).map((line) => row(line, "td")),
      ),
    ),
  );
}

/** The cells of a row; a bar behind a backslash separates nothing. */
function cells(line) {
  const found = [];
  const { text } = line;
  let start = /^\s*\|?/.exec(text)[0].length;
  const end = text.length - /\|?\s*$/.exec(text)[0].length;
  for (let i = start; i <= end; i += 1) {
    if (i === end || (text[i] === "|" && text[i - 1] !== "\\")) {
      const raw = text.slice(start, i);
      found.push({ text: raw.trim(), at: line.at + start + (raw.length - raw.trimStart().length) });
      start = i + 1;
    }
  }
  return found;
}

function code(lines, marks) {
  const [, fence, language] = FENCE.exec(lines[0].text);
  const last = lines.at(-1).text.trim();
  const closed = lines.length > 1 && last.length >= fence.length && last === fence[0].repeat(last.length);
  const body = lines.slice(1, closed ? -1 : undefined);
  const element = h(
    "code",
    {},
    body.map((line, number) => {
      const node = document.createTextNode(number + 1 < body.length ? `${line.text}\n` : line.text);
      marks.push({ node, from: line.at, to: line.at + node.length });
      return node;
    }),
  );
  const button = iconButton("copy", "Copy code", () =>
    copy(body.map((line) => line.text).join("\n"), button),
  );
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, h("span", {}, language || "code"), button),
    h("pre", { tabindex: 0 }, element),
  );
}

function cut(line, count) {
  return { text: line.text.slice(count), at: line.at + count };
}
