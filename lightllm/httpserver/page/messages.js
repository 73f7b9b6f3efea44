/** How one message of a conversation looks. */

import { copy, h, iconButton } from "./dom.js";
import { Rendered } from "./markdown.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };
const REASONS = {
  length: "cut off at the token limit",
  stopped: "stopped",
  tool_calls: "waits for the tools' results",
  content_filter: "withheld by a filter",
  abort: "aborted",
};

/**
 * A message on the screen. `actions` are what its buttons do: edit(message, changes), regenerate(message),
 * remove(message), answerTools(message, results).
 */
export class MessageView {
  constructor(message, actions, inspector) {
    this._message = message;
    this._actions = actions;
    this._inspector = inspector;
    this._reasoning = null;
    this._body = h("div", { class: "body" });
    this._text = h("div", { class: "text", dir: "auto" });
    this._rendered = new Rendered(this._text);
    this._foot = h("div", { class: "foot" });
    this._calls = h("div", { class: "calls" });
    this._body.append(this._text, this._calls);
    this.element = h(
      "article",
      { class: `message ${message.role}`, "aria-label": NAMES[message.role] },
      h("h2", { class: "who" }, NAMES[message.role]),
      this._body,
      this._foot,
    );
    if (message.images?.length) this._body.prepend(pictures(message.images));
    if (message.imagesLost)
      this._body.prepend(h("p", { class: "note" }, "Its images were too large to be kept."));
    this.update();
    if (!message.writing) this.finish();
  }

  /** Shows what has come. */
  update() {
    const { role, content, reasoning, writing, calls } = this._message;
    if (role === "assistant") this._rendered.update(content);
    else this._text.textContent = content;
    if (reasoning) this._think(reasoning, writing && !content && !calls?.length);
    if (calls) this._calls.replaceChildren(...calls.map((call) => this._call(call)));
    this.element.classList.toggle("waiting", Boolean(writing && !content && !reasoning && !calls?.length));
  }

  /** The message is whole: its buttons, its figures, its tokens. */
  finish() {
    const message = this._message;
    this.update();
    if (message.calls?.length && !message.writing) this._askForResults();
    this._foot.replaceChildren(
      ...this._problems(),
      h("div", { class: "tools" }, ...this._buttons()),
      ...this._figures(),
    );
    if (message.tokens?.length) this._inspector.attach(this._text, message, this._rendered.marks);
  }

  /** Before the element leaves the page. */
  close() {
    this._inspector.detach(this._text);
  }

  edit() {
    const { content, role } = this._message;
    const area = h("textarea", { "aria-label": "Edited message", rows: 1, dir: "auto" });
    area.value = content;
    const save = () => this._actions.edit(this._message, area.value);
    const cancel = () => {
      form.replaceWith(this._text);
      this._foot.hidden = false;
      this._foot.querySelector("button")?.focus();
    };
    const label = role === "user" ? "Send" : "Keep";
    const form = h(
      "form",
      {
        class: "edit",
        onsubmit: (event) => {
          event.preventDefault();
          save();
        },
      },
      area,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", onclick: cancel }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, label),
      ),
    );
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && role === "user") {
        event.preventDefault();
        save();
      }
    });
    this._text.replaceWith(form);
    this._foot.hidden = true;
    area.focus();
  }

  _think(reasoning, thinking) {
    if (!this._reasoning) {
      const text = h("div", { class: "text" });
      const label = h("span", {});
      this._reasoning = {
        label,
        rendered: new Rendered(text),
        element: h("details", { class: "reasoning" }, h("summary", {}, label), text),
      };
      this._body.prepend(this._reasoning.element);
    }
    this._reasoning.label.textContent = thinking ? "Thinking…" : "Reasoning";
    this._reasoning.rendered.update(reasoning);
  }

  _call({ name, arguments: text }) {
    return h(
      "figure",
      { class: "code call" },
      h("figcaption", {}, h("span", {}, "calls ", h("code", {}, name))),
      h("pre", { tabindex: 0 }, h("code", {}, pretty(text))),
    );
  }

  _askForResults() {
    if (!this._actions.isLast(this._message)) return;
    const areas = this._message.calls.map((call, number) =>
      h("textarea", {
        rows: 2,
        class: "code",
        "aria-label": `Result of ${call.name}, call ${number + 1}`,
        placeholder: `Result of ${call.name}`,
      }),
    );
    this._calls.append(
      h(
        "form",
        {
          class: "edit",
          onsubmit: (event) => {
            event.preventDefault();
            this._actions.answerTools(
              this._message,
              areas.map((area) => area.value),
            );
          },
        },
        ...areas,
        h("div", { class: "row end" }, h("button", { type: "submit", class: "primary" }, "Send results")),
      ),
    );
  }

  _problems() {
    const { error, finish, role } = this._message;
    if (error) return [h("p", { class: "problem", role: "alert" }, error)];
    const reason = role === "assistant" ? REASONS[finish] : null;
    return reason ? [h("p", { class: "note" }, `${reason[0].toUpperCase()}${reason.slice(1)}.`)] : [];
  }

  _buttons() {
    const message = this._message,
      actions = this._actions;
    const buttons = [];
    if (message.content) {
      const button = iconButton("copy", "Copy message", () => copy(message.content, button));
      buttons.push(button);
    }
    if (message.role !== "tool") buttons.push(iconButton("edit", "Edit message", () => this.edit()));
    if (message.role === "assistant")
      buttons.push(iconButton("again", "Regenerate", () => actions.regenerate(message)));
    buttons.push(iconButton("remove", "Delete message", () => actions.remove(message)));
    return buttons;
  }

  _figures() {
    const { stats, role } = this._message;
    if (role !== "assistant" || !stats?.tokens) return [];
    const parts = [`${stats.tokens} tokens`];
    const writing = stats.seconds - stats.first;
    if (stats.tokens > 1 && writing > 0) parts.push(`${((stats.tokens - 1) / writing).toFixed(1)} tokens/s`);
    if (stats.first !== undefined) parts.push(`first after ${duration(stats.first)}`);
    if (stats.cached) parts.push(`${stats.cached} of ${stats.prompt} prompt tokens cached`);
    return [h("p", { class: "figures" }, parts.join("  ·  "))];
  }
}

function pictures(images) {
  return h(
    "div",
    { class: "pictures" },
    images.map(({ url, name }) => h("img", { src: url, alt: name })),
  );
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}
