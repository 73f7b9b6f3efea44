/**
 * What a controller shows in the place of the dashboard: its workers, what each has to do, and buttons to
 * drain and to remove them. Asks only while it is seen.
 */

import { getJson, request } from "./api.js";
import { byId, h } from "./dom.js";

const LOOK_SECONDS = 1;
const STATES = { ready: "ok", draining: "wait", suspect: "wait", out: "bad" };
const FIGURES = [
  ["ready", (workers) => count(workers.filter((worker) => worker.state === "ready").length)],
  ["running", (workers) => count(sum(workers, load))],
  ["prompt tokens to compute", (workers) => count(sum(workers, (worker) => worker.prefill_tokens))],
  ["requests so far", (workers) => count(sum(workers, (worker) => worker.sent))],
  ["prompt tokens in prefix caches", hitRate],
];

export class Workers {
  constructor() {
    this._rows = new Map();
    this._figures = FIGURES.map(([label]) => ({ label, value: h("dd", {}, "–") }));
    this._note = h("p", { class: "problem", role: "status", hidden: true });
    this._body = h("tbody");
    this._none = h("p", { class: "about", hidden: true }, "No worker has registered yet.");
    this._view = byId("dashboard-view");
    this._view.setAttribute("aria-label", "Workers");
    this._view.append(
      h("div", { class: "dash-head" }, h("h1", {}, "Workers")),
      this._note,
      h(
        "dl",
        { class: "figures-row" },
        this._figures.map(({ label, value }) => h("div", {}, h("dt", {}, label), value)),
      ),
      h("div", { class: "panel wide table", tabindex: "0" }, h("table", {}, head(), this._body), this._none),
    );
  }

  /** Whenever the view is shown. */
  look() {
    if (this._looking) return;
    this._looking = true;
    this._watch();
  }

  async _watch() {
    if (this._view.hidden) {
      this._looking = false;
      return;
    }
    if (!document.hidden) await this._ask(() => getJson("workers"));
    setTimeout(() => this._watch(), LOOK_SECONDS * 1000);
  }

  async _ask(question) {
    try {
      this._show((await question()).workers);
      this._tell("");
    } catch (error) {
      this._tell(error.message);
    }
  }

  _tell(problem) {
    this._note.hidden = problem === "";
    if (this._note.textContent !== problem) this._note.textContent = problem;
  }

  _show(workers) {
    for (const [index, [, value]] of FIGURES.entries()) this._figures[index].value.textContent = value(workers);
    this._none.hidden = workers.length > 0;
    const urls = new Set(workers.map((worker) => worker.url));
    for (const [url, row] of this._rows) {
      if (urls.has(url)) continue;
      row.element.remove();
      this._rows.delete(url);
    }
    for (const worker of workers) {
      let row = this._rows.get(worker.url);
      if (row === undefined) {
        row = new Row(worker.url, (path, method) => this._order(worker.url, path, method));
        this._rows.set(worker.url, row);
        this._body.append(row.element);
      }
      row.show(worker);
    }
  }

  _order(url, path, method) {
    const asked = `${path}?url=${encodeURIComponent(url)}`;
    return this._ask(async () => (await request(asked, { method })).json());
  }
}

/** One worker. Its elements stay, so that a button that has the focus keeps it. */
class Row {
  constructor(url, order) {
    this._state = h("span", { class: "health" });
    this._stateText = h("span");
    this._models = h("td");
    this._cells = CELLS.map(() => h("td", { class: "number" }));
    this._drain = h("button", { type: "button", class: "labelled", onclick: () => order(this._path, "POST") });
    const remove = h("button", { type: "button", class: "labelled", onclick: () => order("workers", "DELETE") });
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${url}`);
    this._url = url;
    this.element = h(
      "tr",
      {},
      h("th", { scope: "row" }, url),
      this._models,
      h("td", {}, this._state, " ", this._stateText),
      this._cells,
      h("td", { class: "orders" }, this._drain, remove),
    );
  }

  show(worker) {
    this._models.textContent = worker.models.join(", ");
    this._state.dataset.status = worker.breaker === "open" ? "bad" : (STATES[worker.state] ?? "bad");
    this._stateText.textContent = worker.breaker === "open" ? `${worker.state}, breaker open` : worker.state;
    for (const [index, [, value]] of CELLS.entries()) this._cells[index].textContent = value(worker);
    const draining = worker.state === "draining";
    this._path = draining ? "workers/undrain" : "workers/drain";
    const label = draining ? "Undrain" : "Drain";
    if (this._drain.textContent === label) return;
    this._drain.textContent = label;
    this._drain.setAttribute("aria-label", `${label} ${this._url}`);
  }
}

const CELLS = [
  ["Requests", (worker) => count(load(worker))],
  ["To compute", (worker) => count(worker.prefill_tokens)],
  ["KV in use", (worker) => share(worker.kv_use)],
  ["Hit rate", (worker) => hitRate([worker])],
  ["So far", (worker) => count(worker.sent)],
];

function head() {
  const names = ["Worker", "Models", "State", ...CELLS.map(([name]) => name)];
  const cells = names.map((name) => h("th", { scope: "col" }, name));
  return h("thead", {}, h("tr", {}, cells, h("td", {})));
}

function load(worker) {
  return worker.in_flight + worker.foreign;
}

function hitRate(workers) {
  const asked = sum(workers, (worker) => worker.prompt_tokens);
  return asked ? share(sum(workers, (worker) => worker.cached_tokens) / asked) : "–";
}

function sum(workers, value) {
  return workers.reduce((total, worker) => total + value(worker), 0);
}

function share(value) {
  return `${Math.round(100 * value)} %`;
}

function count(value) {
  return value.toLocaleString("en");
}
