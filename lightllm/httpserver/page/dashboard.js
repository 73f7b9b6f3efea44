/**
 * The dashboard: what the server does, second by second, as /metrics/history and /metrics/kv_map say. Asks
 * only while it is seen.
 */

import { getJson } from "./api.js";
import { byId, h } from "./dom.js";
import { KvMap } from "./kv_map.js";
import { Plot } from "./plot.js";

const KEPT_SECONDS = 600;
const WINDOWS = [
  [60, "1 min"],
  [300, "5 min"],
  [600, "10 min"],
];

const PLOTS = [
  {
    title: "Tokens a second",
    format: number,
    series: [
      { field: "output_tokens_per_second", label: "output", color: 1 },
      { field: "input_tokens_per_second", label: "prompts", color: 2 },
    ],
  },
  {
    title: "Requests",
    format: number,
    least: 4,
    whole: true,
    series: [
      { field: "running", label: "running", color: 1 },
      { field: "waiting", label: "waiting", color: 3 },
      { field: "paused", label: "paused", color: 2 },
    ],
  },
  {
    title: "Time to the first token",
    note: "TTFT, of the last ten seconds",
    format: duration,
    least: 0.001,
    series: [
      { field: "ttft_p50", label: "median", color: 1 },
      { field: "ttft_p99", label: "99th percentile", color: 3 },
    ],
  },
  {
    title: "Time between tokens",
    note: "ITL, of the last ten seconds",
    format: duration,
    least: 0.001,
    series: [
      { field: "itl_p50", label: "median", color: 1 },
      { field: "itl_p99", label: "99th percentile", color: 3 },
    ],
  },
  {
    title: "KV slots",
    format: number,
    stacked: true,
    ceiling: "slots_total",
    series: [
      { field: "slots_used", label: "in use by requests", color: "own" },
      { field: "slots_cached", label: "kept in the radix tree", color: "kept" },
    ],
  },
  {
    title: "Answers a second",
    format: number,
    series: [
      { field: "requests_per_second", label: "whole", color: 1 },
      { field: "failures_per_second", label: "failed", color: 4 },
    ],
  },
];

const FIGURES = [
  ["output_tokens_per_second", "output tokens/s", number],
  ["input_tokens_per_second", "prompt tokens/s", number],
  ["running", "running", number],
  ["waiting", "waiting", number],
  ["kv", "KV memory in use", (share) => `${number(100 * share)} %`],
  ["ttft_p50", "median TTFT", duration],
  ["itl_p50", "median ITL", duration],
];

export class Dashboard {
  constructor() {
    this._times = [];
    this._samples = {};
    this._seconds = 300;
    this._plots = PLOTS.map((plot) => new Plot(plot));
    this._map = new KvMap();
    this._figures = FIGURES.map(([, label]) => ({ label, value: h("dd", {}, "–") }));
    this._note = h("p", { class: "problem", role: "status", hidden: true });
    this._view = byId("dashboard-view");
    this._view.append(
      h("div", { class: "dash-head" }, h("h1", {}, "Dashboard"), this._windows()),
      this._note,
      h(
        "dl",
        { class: "figures-row" },
        this._figures.map(({ label, value }) => h("div", {}, h("dt", {}, label), value)),
      ),
      this._map.element,
      h(
        "div",
        { class: "plots" },
        this._plots.map((plot) => plot.element),
      ),
    );
    new ResizeObserver(() => this._plots.forEach((plot) => plot.draw())).observe(this._view);
    this._poll();
  }

  _windows() {
    return h(
      "fieldset",
      { class: "choice" },
      h("legend", { class: "hidden" }, "Shown time"),
      WINDOWS.map(([seconds, label]) => {
        const input = h("input", {
          type: "radio",
          name: "window",
          id: `window-${seconds}`,
          class: "hidden",
          value: seconds,
          checked: seconds === this._seconds,
          onchange: () => {
            this._seconds = seconds;
            this._draw();
          },
        });
        return [input, h("label", { for: `window-${seconds}` }, label)];
      }),
    );
  }

  async _poll() {
    if (!this._view.hidden && !document.hidden) await this.look();
    setTimeout(() => this._poll(), 1000);
  }

  /** Asks for what is new. */
  async look() {
    const last = this._times.at(-1);
    const missing = last === undefined ? KEPT_SECONDS : Date.now() / 1000 - last + 2;
    const seconds = Math.max(2, Math.min(KEPT_SECONDS, Math.ceil(missing)));
    try {
      const [history, map] = await Promise.all([
        getJson(`metrics/history?seconds=${seconds}`),
        getJson("metrics/kv_map"),
      ]);
      this._add(history.samples);
      this._map.update(map);
      this._say("");
    } catch (error) {
      this._say(
        error instanceof TypeError
          ? "The server cannot be reached; the figures are those of the last time."
          : error.message,
      );
    }
    this._draw();
  }

  _add(samples) {
    const last = this._times.at(-1) ?? 0;
    const from = samples.time.findIndex((time) => time > last);
    if (from < 0) return;
    const first = Math.max(0, this._times.length + samples.time.length - from - KEPT_SECONDS);
    for (const [field, values] of Object.entries(samples)) {
      this._samples[field] = [...(this._samples[field] ?? []), ...values.slice(from)].slice(first);
    }
    this._times = this._samples.time;
  }

  _draw() {
    const start = (this._times.at(-1) ?? 0) - this._seconds;
    const first = this._times.findIndex((time) => time >= start);
    const shown = Object.fromEntries(
      Object.entries(this._samples).map(([name, values]) => [name, values.slice(Math.max(0, first))]),
    );
    for (const plot of this._plots) plot.update(shown.time ?? [], shown, this._seconds);
    FIGURES.forEach(([field, , format], i) => {
      const value = this._latest(field);
      this._figures[i].value.textContent = value === null || value === undefined ? "–" : format(value);
    });
  }

  _latest(field) {
    if (field !== "kv") return this._samples[field]?.at(-1);
    const total = this._samples.slots_total?.at(-1);
    return total ? this._samples.slots_used.at(-1) / total : null;
  }

  _say(text) {
    this._note.textContent = text;
    this._note.hidden = !text;
  }
}

function number(value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(2)} M`;
  if (value >= 1e4) return `${+(value / 1e3).toFixed(1)} k`;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function duration(seconds) {
  if (seconds >= 1) return `${+seconds.toFixed(2)} s`;
  return `${+(seconds * 1000).toFixed(seconds < 0.01 ? 2 : seconds < 0.1 ? 1 : 0)} ms`;
}
