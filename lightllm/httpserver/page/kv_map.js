/**
 * The map of KV memory: a square for each piece of it, in the order of the slots; how much of it requests
 * own, how much the radix tree keeps for later prompts, and how much is free.
 */

import { h } from "./dom.js";

const GAP = 1;
const SMALLEST = 7;

export class KvMap {
  constructor() {
    this._canvas = h("canvas", { class: "kv-map", role: "img" });
    this._rows = ["own", "read", "kept", "free"].map((name) => ({
      name,
      count: h("span", { class: "value" }),
      share: h("span", { class: "share" }),
    }));
    const labels = {
      own: "requests' own",
      read: "radix tree, read by requests",
      kept: "radix tree, kept for later prompts",
      free: "free",
    };
    this._about = h("p", { class: "about" });
    this.element = h(
      "figure",
      { class: "panel wide" },
      h("figcaption", {}, h("h3", {}, "KV memory"), this._about),
      this._canvas,
      h(
        "ul",
        { class: "legend map-legend" },
        this._rows.map(({ name, count, share }) =>
          h("li", { class: `kv-${name}` }, h("span", { class: "key" }), labels[name], count, share),
        ),
      ),
    );
    new ResizeObserver(() => this.draw()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new MutationObserver(() => this.draw()).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  /** `map`: what /metrics/kv_map answers. */
  update(map) {
    this._map = map;
    const { slots, own, cached, read, free, nodes } = map;
    const counts = { own, read, kept: cached - read, free };
    for (const { name, count, share } of this._rows) {
      count.textContent = counts[name].toLocaleString("en");
      share.textContent = slots ? `${((100 * counts[name]) / slots).toFixed(1)} %` : "";
    }
    const each = map.cells.own.length ? slots / map.cells.own.length : 0;
    const squares =
      each > 1.5 ? `a square is ${Math.round(each).toLocaleString("en")} of them` : "a square is one of them";
    this._about.textContent = `${slots.toLocaleString("en")} slots, one a token; ${squares}. The radix tree has ${nodes} nodes.`;
    this._canvas.setAttribute(
      "aria-label",
      `Of ${slots} slots ${own} are owned by requests, ${cached} are in the radix tree, ${free} are free`,
    );
    this.draw();
  }

  draw() {
    const width = this._canvas.clientWidth;
    if (!this._map || !width) return;
    const { own, cached, size } = this._map.cells;
    const columns = Math.max(
      1,
      Math.min(own.length, Math.floor(width / Math.max(SMALLEST, Math.ceil(width / 96)))),
    );
    const side = width / columns;
    const rows = Math.ceil(own.length / columns);
    const sharp = devicePixelRatio || 1;
    this._canvas.style.height = `${rows * side}px`;
    this._canvas.width = Math.round(width * sharp);
    this._canvas.height = Math.round(rows * side * sharp);
    const paint = this._canvas.getContext("2d");
    const colour = (name) => getComputedStyle(this.element.querySelector(`.kv-${name} .key`)).backgroundColor;
    const [ofOwn, ofCached, ofFree] = ["own", "kept", "free"].map(colour);
    paint.scale(sharp, sharp);
    own.forEach((count, i) => {
      const x = (i % columns) * side,
        y = Math.floor(i / columns) * side,
        box = side - GAP;
      const high = (box * count) / size[i],
        middle = (box * cached[i]) / size[i];
      fill(paint, ofFree, x, y, box, box);
      fill(paint, ofCached, x, y + box - high - middle, box, middle);
      fill(paint, ofOwn, x, y + box - high, box, high);
    });
  }
}

function fill(paint, colour, x, y, width, height) {
  if (height <= 0) return;
  paint.fillStyle = colour;
  paint.fillRect(x, y, width, height);
}
