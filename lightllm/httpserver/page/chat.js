/** The chat: what is typed becomes a message, a message a request, and its stream an answer. */

import { events, request, ServerError } from "./api.js";
import { addEvent, requestMessages } from "./conversation.js";
import { showCurl } from "./curl.js";
import { byId, say } from "./dom.js";
import { Attachments } from "./images.js";
import { MessageView } from "./messages.js";
import { loadMessages, saveMessages } from "./store.js";
import { TokenInspector } from "./tokens.js";

const SAVE_SECONDS = 2;

export class Chat {
  constructor(settings) {
    this._settings = settings;
    this._messages = loadMessages();
    this._views = new Map();
    this._running = null;
    this._inspector = new TokenInspector();
    this._attachments = new Attachments();
    this._list = byId("messages");
    this._draft = byId("draft");
    this._actions = {
      edit: (message, content) => this._edit(message, content),
      regenerate: (message) => this._answer(this._messages.slice(0, this._messages.indexOf(message))),
      remove: (message) => this._keep(this._messages.filter((each) => each !== message)),
      answerTools: (message, results) => this._answerTools(message, results),
      isLast: (message) => this._messages.at(-1) === message,
    };
    this._listen();
    this._draw();
    scrollTo(0, document.body.scrollHeight);
  }

  /** What the server has said about its model. */
  describe({ sees, model }) {
    this._model = model;
    if (sees) this._attachments.allow();
  }

  // -- what people do

  _listen() {
    const draft = this._draft;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this._send();
    });
    draft.addEventListener("input", () => this._fit());
    draft.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this._send();
      } else if (event.key === "ArrowUp" && !draft.value) {
        this._views.get(this._messages.findLast(({ role }) => role === "user"))?.edit();
        event.preventDefault();
      }
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this._clear());
    byId("show-curl").addEventListener("click", () => this._curl());
    addEventListener("pagehide", () => saveMessages(this._messages));
  }

  stop() {
    this._running?.abort();
  }

  _send() {
    const content = this._draft.value.trim(),
      images = this._attachments.images;
    if (this._running || (!content && !images.length)) return;
    this._draft.value = "";
    this._attachments.set([]);
    this._fit();
    this._answer([...this._messages, { role: "user", content, ...(images.length ? { images } : {}) }]);
  }

  _edit(message, content) {
    const at = this._messages.indexOf(message);
    const { tokens, ...kept } = message; // they were those of another text
    const edited = { ...kept, content };
    if (message.role === "user") this._answer([...this._messages.slice(0, at), edited]);
    else this._keep(this._messages.with(at, edited));
  }

  _answerTools(message, results) {
    const answers = message.calls.map((call, number) => ({
      role: "tool",
      callId: call.id,
      content: results[number],
    }));
    this._answer([...this._messages, ...answers]);
  }

  _clear() {
    this.stop();
    this._keep([]);
    this._draft.focus();
  }

  _curl() {
    try {
      const draft = this._draft.value.trim();
      const next = draft ? [{ role: "user", content: draft, images: this._attachments.images }] : [];
      showCurl(this._body([...this._messages, ...next]));
    } catch (error) {
      say(error.message);
      this._settings.show(true);
    }
  }

  // -- the answer

  _body(messages) {
    return {
      model: this._model,
      messages: requestMessages(this._settings.system, messages),
      stream: true,
      stream_options: { include_usage: true },
      ...this._settings.fields(),
    };
  }

  /** Has the model go on behind `messages`, which become the conversation. */
  async _answer(messages) {
    this.stop();
    const message = { role: "assistant", content: "", writing: true, stats: {} };
    const running = new AbortController();
    this._keep([...messages, message]);
    this._begin(running);
    const started = seconds();
    try {
      const body = this._body(messages);
      const response = await request("v1/chat/completions", { body, signal: running.signal });
      for await (const event of events(response)) {
        addEvent(message, event, started, seconds());
        this._news(message);
      }
    } catch (error) {
      if (running.signal.aborted) message.finish = "stopped";
      else message.error = reasonOf(error);
    }
    message.writing = false;
    message.stats.seconds = seconds() - started;
    this._end(message, running);
  }

  _begin(running) {
    this._running = running;
    this._list.setAttribute("aria-busy", "true"); // it is read when it is whole
    byId("send").hidden = true;
    byId("stop").hidden = false;
    scrollTo(0, document.body.scrollHeight);
  }

  _news(message) {
    if (this._frame) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      if (message.writing) this._following(() => this._views.get(message)?.update());
    });
    if (seconds() - (this._saved ?? 0) > SAVE_SECONDS) this._save();
  }

  _end(message, running) {
    this._following(() => this._views.get(message)?.finish());
    this._save();
    if (this._running !== running) return; // the next answer is being written
    this._running = null;
    this._list.setAttribute("aria-busy", "false");
    const hadFocus = document.activeElement === byId("stop");
    byId("send").hidden = false;
    byId("stop").hidden = true;
    if (hadFocus) this._draft.focus();
  }

  /** Changes the page and stays at its end, if that is what is looked at. */
  _following(change) {
    const page = document.documentElement;
    const atEnd = page.scrollHeight - innerHeight - scrollY < 48;
    change();
    if (atEnd) scrollTo(0, page.scrollHeight);
  }

  // -- what is shown and kept

  _keep(messages) {
    this._messages = messages;
    this._draw();
    this._save();
  }

  _save() {
    this._saved = seconds();
    saveMessages(this._messages);
  }

  _draw() {
    const last = this._messages.at(-1);
    for (const [message, view] of this._views) {
      const stays = this._messages.includes(message) && !(message.calls && message !== last);
      if (stays) continue;
      view.close();
      view.element.remove();
      this._views.delete(message);
    }
    this._messages.forEach((message, place) => {
      if (!this._views.has(message))
        this._views.set(message, new MessageView(message, this._actions, this._inspector));
      const { element } = this._views.get(message);
      if (this._list.children[place] !== element)
        this._list.insertBefore(element, this._list.children[place] ?? null);
    });
    byId("empty").hidden = this._messages.length > 0;
    byId("chat-view").classList.toggle("is-empty", this._messages.length === 0);
  }

  /** The message field is as high as its text. */
  _fit() {
    this._draft.style.height = "auto";
    this._draft.style.height = `${Math.min(this._draft.scrollHeight, innerHeight * 0.4)}px`;
  }
}

function reasonOf(error) {
  return error instanceof ServerError || !(error instanceof TypeError)
    ? error.message
    : "The server cannot be reached.";
}

function seconds() {
  return performance.now() / 1000;
}
