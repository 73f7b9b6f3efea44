/**
 * Lines over time, drawn as SVG. The legend reads the values off: the latest ones, or those under the
 * pointer or the arrow keys.
 */

import { h, svg } from "./dom.js";

const HEIGHT = 132;
const LEFT = 46,
  RIGHT = 6,
  TOP = 8,
  BOTTOM = 20;

/**
 * `series`: [{ field, label, color }], `color` the number of a colour of dashboard.css; `format` shows a
 * value; `stacked` draws areas on top of each other, up to the field `ceiling`; `least`: the scale goes up
 * to that at least; `whole`: values are counts.
 */
export class Plot {
  constructor({ title, note, series, format, stacked = false, ceiling = null, least = 1, whole = false }) {
    Object.assign(this, { title, series, format, stacked, ceiling, least, whole });
    this._at = null;
    this._values = series.map(() => h("span", { class: "value" }));
    const legend = h(
      "ul",
      { class: "legend" },
      series.map(({ label, color }, i) =>
        h("li", { class: `color-${color}` }, h("span", { class: "key" }), label, this._values[i]),
      ),
    );
    this._svg = svg("svg", { class: "plot", role: "img", tabindex: 0 });
    this._when = h("span", { class: "when" });
    this.element = h(
      "figure",
      { class: "panel" },
      h(
        "figcaption",
        {},
        h("h3", {}, title),
        note ? h("p", { class: "about" }, note) : null,
        legend,
        this._when,
      ),
      this._svg,
    );
    this._listen();
  }

  /**
   * `times`: seconds, ascending; `samples`: field -> values, null where there is none; `seconds`: how far
   * back is shown.
   */
  update(times, samples, seconds) {
    this._data = { times, samples, seconds };
    this.draw();
  }

  draw() {
    if (!this._data) return;
    const { times, samples, seconds } = this._data;
    const width = this._svg.clientWidth;
    if (!width) return; // it is not shown
    const end = times.at(-1) ?? Date.now() / 1000;
    const columns = this.series.map(({ field }) => samples[field] ?? []);
    const lines = this.stacked ? stack(columns) : columns;
    const top = this._top(lines, samples);
    const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (end - time) / seconds);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    this._scale = { x, end, seconds, width };
    const shapes = this.series.map(({ color }, i) => {
      const path = this.stacked ? area(times, lines[i], lines[i - 1], x, y) : line(times, lines[i], x, y);
      return svg("path", { class: `${this.stacked ? "area" : "line"} color-${color}`, d: path });
    });
    if (this.stacked) shapes.reverse();
    this._svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this._svg.replaceChildren(...this._grid(top, y, width), ...this._times(x), ...shapes, ...this._cross(x));
    this._read();
  }

  _top(lines, samples) {
    if (this.ceiling) return Math.max(1, samples[this.ceiling]?.at(-1) ?? 1);
    const highest = lines.flat().reduce((most, value) => Math.max(most, value ?? 0), 0);
    const top = Math.max(round(highest * 1.08), this.least);
    return this.whole ? 2 * Math.ceil(top / 2) : top; // half of it is a tick too
  }

  _grid(top, y, width) {
    return [0, 0.5, 1].flatMap((share) => [
      svg("line", {
        class: share ? "grid" : "axis",
        x1: LEFT,
        x2: width - RIGHT,
        y1: y(top * share),
        y2: y(top * share),
      }),
      svg(
        "text",
        { class: "tick", x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end" },
        this.format(top * share),
      ),
    ]);
  }

  _times(x) {
    const { end, seconds } = this._scale;
    return [1, 0.5, 0].map((share) => {
      const ago = seconds * share;
      const text = ago === 0 ? "now" : ago < 60 ? `${ago} s ago` : `${ago / 60} min ago`;
      const anchor = { 1: "start", 0.5: "middle", 0: "end" }[share];
      return svg("text", { class: "tick", x: x(end - ago), y: HEIGHT - 4, "text-anchor": anchor }, text);
    });
  }

  _cross(x) {
    const place = this._place();
    if (place === null) return [];
    const at = x(this._data.times[place]);
    return [svg("line", { class: "cross", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM })];
  }

  /** Which sample is pointed at; null: none. */
  _place() {
    const { times } = this._data;
    if (this._at === null || !times.length) return null;
    let best = 0;
    times.forEach((time, i) => {
      if (Math.abs(time - this._at) < Math.abs(times[best] - this._at)) best = i;
    });
    return best;
  }

  _read() {
    const { times, samples } = this._data;
    const place = this._place() ?? times.length - 1;
    const texts = this.series.map(({ field }) => this._text(samples[field]?.[place]));
    texts.forEach((text, i) => {
      this._values[i].textContent = text;
    });
    this._when.textContent = this._at === null ? "" : new Date(times[place] * 1000).toLocaleTimeString();
    const said = this.series.map(({ label }, i) => `${label} ${texts[i]}`).join(", ");
    this._svg.setAttribute("aria-label", `${this.title}: ${said}`);
  }

  _text(value) {
    return value === null || value === undefined ? "–" : this.format(value);
  }

  _listen() {
    this._svg.addEventListener("pointermove", (event) => {
      if (!this._scale) return;
      const { end, seconds, width } = this._scale;
      const share = (event.clientX - this._svg.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
      this._point(end - seconds * (1 - share));
    });
    for (const leaving of ["pointerleave", "blur"])
      this._svg.addEventListener(leaving, () => this._point(null));
    this._svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (!step || !this._data?.times.length) return;
      event.preventDefault();
      const { times } = this._data;
      const place = (this._place() ?? times.length - 1) + step;
      this._point(times[Math.max(0, Math.min(times.length - 1, place))]);
    });
  }

  _point(time) {
    this._at = time;
    this.draw();
  }
}

function stack(columns) {
  const sums = [];
  return columns.map((column) => column.map((value, i) => (sums[i] = (sums[i] ?? 0) + (value ?? 0))));
}

/** A line breaks where there is no value, or where a second or more is missing. */
function line(times, values, x, y) {
  let path = "",
    before = null;
  times.forEach((time, i) => {
    const value = values[i];
    if (value === null || value === undefined) {
      before = null;
      return;
    }
    const joined = before !== null && time - before < 3;
    path += `${joined ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}${joined ? "" : "h0.01"}`;
    before = time;
  });
  return path;
}

function area(times, upper, lower, x, y) {
  if (!times.length) return "";
  const along = (values) => times.map((time, i) => `${x(time).toFixed(1)} ${y(values?.[i] ?? 0).toFixed(1)}`);
  return `M${along(upper).join("L")}L${along(lower).reverse().join("L")}Z`;
}

/** The next number whose half has one digit too. */
function round(value) {
  if (value <= 0) return 0;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 4, 6, 8, 10].find((step) => step * unit >= value * 0.9999);
}
