/** Requests to this server, and to no other: addresses are relative to the folder that the page came from. */

import { byId } from "./dom.js";

const ROOT = new URL("..", import.meta.url);
const KEY = "lightllm.key";

/** An answer of the server that is no success. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function address(path) {
  return new URL(path, ROOT).href;
}

export function hasKey() {
  return readKey() !== "";
}

/**
 * The answer; asks for a key as often as the server wants one. Raises `ServerError` for anything but a
 * success.
 */
export async function request(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  for (;;) {
    const headers = {};
    const key = readKey();
    if (key) headers.authorization = `Bearer ${key}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(address(path), {
      body: body === undefined ? undefined : JSON.stringify(body),
      method,
      headers,
      signal,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
    });
    if (response.status === 401) {
      await askForKey(key, signal);
      continue;
    }
    if (!response.ok) throw new ServerError(await reasonOf(response), response.status);
    return response;
  }
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** The events of a stream, as objects, until the server says that it has ended. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      held += value ?? "";
      const lines = held.split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // comments that keep the connection
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(event.error.message ?? String(event.error), event.error.code);
        yield event;
      }
      if (done) throw new ServerError("The connection ended before the answer did.", 0);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function reasonOf(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.message ?? text;
  } catch {
    return text || `The server answered ${response.status}.`;
  }
}

// -- the key

let asking = null;

/**
 * Resolves when a key has been given; one dialog, however many requests wait. `refused` is the key that did
 * not open.
 */
function askForKey(refused, signal) {
  if (refused !== readKey()) return Promise.resolve(); // another request has got a new one meanwhile
  asking ??= new Promise((resolve, reject) => {
    const dialog = byId("key-dialog"),
      form = byId("key-form"),
      field = byId("key");
    byId("key-error").textContent = refused ? "The server does not know this key." : "";
    form.onsubmit = () => {
      writeKey(field.value.trim());
      field.value = "";
      resolve();
    };
    dialog.oncancel = () => reject(new ServerError("This server wants an API key.", 401));
    dialog.onclose = () => {
      // Chromium gives the focus back to a field while the dialog still bars it, and then it takes no text.
      const focused = document.activeElement;
      focused.blur();
      focused.focus();
    };
    dialog.showModal();
  }).finally(() => {
    asking = null;
  });
  return signal ? Promise.race([asking, aborted(signal)]) : asking;
}

function aborted(signal) {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

let keyInMemory = "";

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? keyInMemory;
  } catch {
    return keyInMemory;
  }
}

function writeKey(key) {
  keyInMemory = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // Storage is blocked: the key is kept until the page is left.
  }
}
