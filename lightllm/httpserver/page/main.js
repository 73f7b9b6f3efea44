/** Puts the page together: the bar, the views, and what the server says about itself. */

import { address, getJson } from "./api.js";
import { Chat } from "./chat.js";
import { Dashboard } from "./dashboard.js";
import { byId, drawIcons } from "./dom.js";
import { Settings } from "./settings.js";
import { themeButton } from "./theme_button.js";

const HEALTH_SECONDS = 5;
const STATUS = { ok: "ok", starting: "wait", stopping: "wait" };

drawIcons(document);
themeButton(byId("theme"));
const chat = new Chat(new Settings());
const dashboard = new Dashboard();
showView();
addEventListener("hashchange", showView);
watchHealth();
describe();

/** The view that the address names. */
function showView() {
  const wanted = location.hash === "#dashboard" ? "dashboard" : "chat";
  for (const link of document.querySelectorAll("[data-view]")) {
    const isShown = link.dataset.view === wanted;
    byId(`${link.dataset.view}-view`).hidden = !isShown;
    if (isShown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("open-settings").hidden = wanted !== "chat";
  if (wanted === "dashboard") dashboard.look();
}

async function describe() {
  try {
    const [model] = (await getJson("v1/models")).data;
    byId("model-name").textContent = model.id;
    document.title = `${model.id} · LightLLM`;
    chat.describe({ model: model.id, sees: model.input_modalities?.includes("image") ?? false });
  } catch (error) {
    byId("model-name").textContent = error.message;
  }
}

async function watchHealth() {
  if (!document.hidden) showHealth(await askHealth());
  setTimeout(watchHealth, HEALTH_SECONDS * 1000);
}

async function askHealth() {
  try {
    return await (await fetch(address("readiness"), { credentials: "omit", cache: "no-store" })).json();
  } catch {
    return { status: "away", reason: "the server cannot be reached" };
  }
}

function showHealth({ status, reason }) {
  const dot = byId("health");
  const text = status === "ok" ? "The server is ready" : `The server is not ready: ${reason || status}`;
  if (dot.title === text) return;
  dot.dataset.status = STATUS[status] ?? "bad";
  dot.title = text;
  dot.setAttribute("aria-label", text);
}
