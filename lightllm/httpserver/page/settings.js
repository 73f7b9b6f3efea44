/** The settings of a chat: a form made of one table, and the fields of a request that follow from it. */

import { byId, h, icon, iconButton } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

/** Fields of a request. What is left empty is not sent, so that the server's own default holds. */
const FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.1,
    hint: "0 takes the likeliest token",
  },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: 0.05 },
  { name: "top_k", label: "Top k", min: -1, step: 1 },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.05 },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1 },
  { name: "seed", label: "Seed", step: 1, hint: "The same seed gives the same answer" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0, max: 2, step: 0.05 },
];
const TOP_LOGPROBS = 5;

export class Settings {
  constructor() {
    this._values = loadSettings();
    this._panel = byId("settings");
    this._button = byId("open-settings");
    this._panel.append(...this._build());
    this._button.addEventListener("click", () => this.show(this._panel.hidden));
    this._panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.show(false);
    });
    this.show(isWide() && (this._values.open ?? matchMedia("(min-width: 75rem)").matches), false);
  }

  /** Opens or closes the panel. */
  show(open, byHand = true) {
    this._panel.hidden = !open;
    this._button.setAttribute("aria-expanded", String(open));
    const covers = open && !isWide();
    for (const covered of document.querySelectorAll(".bar, .talk")) covered.inert = covers;
    if (!byHand) return;
    if (isWide()) this._keep("open", open);
    (open ? this._panel.querySelector("textarea") : this._button).focus();
  }

  get system() {
    return (this._values.system ?? "").trim();
  }

  /** The fields of a request besides its messages. Raises an `Error` that says which setting is wrong. */
  fields() {
    const fields = {};
    for (const { name, label } of FIELDS) {
      const text = this._values[name] ?? "";
      if (text === "") continue;
      if (!Number.isFinite(Number(text))) throw new Error(`${label}: ${text} is no number.`);
      fields[name] = Number(text);
    }
    const stops = (this._values.stop ?? "").split("\n").filter(Boolean).map(unescape);
    if (stops.length) fields.stop = stops;
    if ((this._values.tools ?? "").trim()) fields.tools = parsed("Tools", this._values.tools);
    if ((this._values.response_format ?? "").trim()) {
      fields.response_format = {
        type: "json_schema",
        json_schema: { name: "answer", schema: parsed("JSON schema", this._values.response_format) },
      };
    }
    if (this._values.probabilities) Object.assign(fields, { logprobs: true, top_logprobs: TOP_LOGPROBS });
    return fields;
  }

  _build() {
    const close = iconButton("close", "Close the settings", () => this.show(false), { class: "quiet close" });
    return [
      h("div", { class: "head" }, h("h2", {}, "Settings"), close),
      this._area("system", "System prompt", 3, "You are a helpful assistant."),
      h(
        "div",
        { class: "numbers" },
        FIELDS.map((field) => this._number(field)),
      ),
      this._area("stop", "Stop strings", 2, "one a line; \\n for a new line"),
      this._switch(
        "probabilities",
        "Token probabilities",
        "Point at a word of an answer, or move through it with the arrow keys",
      ),
      h(
        "details",
        { class: "more" },
        h("summary", {}, "Tools and JSON"),
        this._area("tools", "Tools", 5, '[{"type": "function", "function": {"name": …}}]', true),
        this._area("response_format", "JSON schema of the answer", 4, '{"type": "object", …}', true),
      ),
      h(
        "button",
        { type: "button", class: "quiet labelled", onclick: () => this._reset() },
        icon("again"),
        "Back to the defaults",
      ),
    ];
  }

  _number({ name, label, hint, ...limits }) {
    const input = h("input", {
      id: `set-${name}`,
      type: "number",
      inputmode: "decimal",
      placeholder: "default",
      title: hint,
      ...limits,
      step: "any",
      oninput: (event) => {
        event.target.setAttribute("aria-invalid", String(!event.target.validity.valid));
        this._keep(name, event.target.value);
      },
    });
    input.value = this._values[name] ?? "";
    return h("div", {}, h("label", { for: `set-${name}` }, label), input);
  }

  _area(name, label, rows, placeholder, code = false) {
    const area = h("textarea", {
      id: `set-${name}`,
      rows,
      placeholder,
      spellcheck: code ? "false" : null,
      class: code ? "code" : null,
      oninput: (event) => this._keep(name, event.target.value),
    });
    area.value = this._values[name] ?? "";
    return h("div", { class: "area" }, h("label", { for: `set-${name}` }, label), area);
  }

  _switch(name, label, hint) {
    const box = h("input", {
      id: `set-${name}`,
      type: "checkbox",
      role: "switch",
      "aria-describedby": `hint-${name}`,
      onchange: (event) => this._keep(name, event.target.checked),
    });
    box.checked = Boolean(this._values[name]);
    return h(
      "div",
      { class: "switch" },
      box,
      h("label", { for: `set-${name}` }, label),
      h("p", { id: `hint-${name}` }, hint),
    );
  }

  _keep(name, value) {
    this._values[name] = value;
    saveSettings(this._values);
  }

  _reset() {
    this._values = { open: this._values.open };
    saveSettings(this._values);
    this._panel.replaceChildren(...this._build());
  }
}

/** Whether the panel has room beside the chat, and does not cover it. */
function isWide() {
  return matchMedia("(min-width: 56rem)").matches;
}

function unescape(text) {
  return text.replace(/\\n/g, "\n").replace(/\\t/g, "\t");
}

function parsed(label, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${label}: ${error.message}`);
  }
}
