/** Puts the page together: the bar, the views, and what the server says about itself. */

import { address, getJson } from "./api.js";
import { Chat } from "./chat.js";
import { Dashboard } from "./dashboard.js";
import { byId, drawIcons, h } from "./dom.js";
import { Settings } from "./settings.js";
import { themeButton } from "./theme_button.js";
import { Workers } from "./workers.js";

const HEALTH_SECONDS = 5;
const STATUS = { ok: "ok", starting: "wait", stopping: "wait" };

drawIcons(document);
themeButton(byId("theme"));
const chat = new Chat(new Settings());
const isController = document.body.dataset.server === "controller";
const dashboard = isController ? new Workers() : new Dashboard();
if (isController) showAsController();
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
    const models = (await getJson("v1/models")).data;
    if (models.length === 0) throw new Error("No model is here yet.");
    byId("model-name").replaceChildren(models.length === 1 ? models[0].id : choiceOf(models));
    talkWith(models[0]);
  } catch (error) {
    byId("model-name").textContent = error.message;
  }
}

function talkWith(model) {
  document.title = `${model.id} · LightLLM`;
  chat.describe({ model: model.id, sees: model.input_modalities?.includes("image") ?? false });
}

/** Of a controller's models. */
function choiceOf(models) {
  const options = models.map((model) => h("option", {}, model.id));
  const choice = h("select", { "aria-label": "Model" }, options);
  choice.addEventListener("change", () => talkWith(models[choice.selectedIndex]));
  return choice;
}

/** The same page with other views: workers for the dashboard, and no documentation of routes. */
function showAsController() {
  document.querySelector('[data-view="dashboard"]').textContent = "Workers";
  document.querySelector('nav a[href="docs"]').remove();
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
