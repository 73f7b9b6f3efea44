/** The documentation of the API, made in the browser of /openapi.json. */

import { getJson, request } from "./api.js";
import { commandOf } from "./curl.js";
import { byId, copy, h, iconButton } from "./dom.js";
import { Schemas } from "./schema.js";
import { themeButton } from "./theme_button.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
/** Characters of an answer. */
const MAX_SHOWN = 200_000;

/** Bodies that say more than the least one does. */
const EXAMPLES = {
  "/v1/chat/completions": { messages: [{ role: "user", content: "What is AI?" }], max_tokens: 64 },
  "/v1/completions": { prompt: "What is AI?", max_tokens: 64 },
  "/generate": { inputs: "What is AI?", parameters: { max_new_tokens: 64 } },
  "/generate_stream": { inputs: "What is AI?", parameters: { max_new_tokens: 64 } },
  "/tokens": { text: "What is AI?" },
};

themeButton(byId("theme"));
show();

async function show() {
  try {
    const description = await getJson("openapi.json");
    byId("version").textContent = description.info.version;
    const schemas = new Schemas(description);
    for (const [tag, routes] of byTag(description)) byId("routes").append(section(tag, routes, schemas));
    byId("note").textContent = "";
    byId("find").addEventListener("input", find);
    openNamed();
    addEventListener("hashchange", openNamed);
  } catch (error) {
    byId("note").textContent = error.message;
  }
}

/** Tag -> [{ path, methods, operation }]; methods that mean the same stand together. */
function byTag({ paths }) {
  const tags = new Map();
  for (const [path, item] of Object.entries(paths)) {
    const found = METHODS.filter((method) => item[method]);
    const same =
      found.length > 1 &&
      found.every(
        (method) => item[method].description === item[found[0]].description && !item[method].requestBody,
      );
    for (const methods of same ? [found] : found.map((method) => [method])) {
      const operation = item[methods[0]];
      const tag = operation.tags?.[0] ?? "Other";
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push({ path, methods, operation });
    }
  }
  return tags;
}

function section(tag, routes, schemas) {
  const id = `tag-${tag.replace(/\W+/g, "-")}`;
  return h(
    "section",
    { "aria-labelledby": id },
    h("h2", { id }, tag),
    routes.map((route) => routeOf(route, schemas)),
  );
}

function routeOf({ path, methods, operation }, schemas) {
  const details = h(
    "details",
    { class: "route", id: `${methods[0]}${path}` },
    h(
      "summary",
      {},
      methods.map((method) => h("span", { class: "method" }, method.toUpperCase())),
      h("code", {}, path),
      h("span", { class: "brief" }, brief(operation)),
    ),
  );
  // Most are never opened.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1)
      details.append(...contents(path, methods[0], operation, schemas));
  });
  details.searched = [
    path,
    operation.summary,
    operation.description,
    ...fieldNames(bodyOf(operation), schemas),
  ]
    .join(" ")
    .toLowerCase();
  return details;
}

/** The first sentence of what a route does. */
function brief({ description, summary = "" }) {
  return description?.split(/(?<=[.;:])\s/)[0].replace(/[.;:]$/, "") ?? summary;
}

function bodyOf(operation) {
  return operation.requestBody?.content?.["application/json"]?.schema;
}

function fieldNames(schema, schemas) {
  return schema ? Object.keys(schemas.resolve(schema).properties ?? {}) : [];
}

function contents(path, method, operation, schemas) {
  const schema = bodyOf(operation);
  const rows = schema ? schemas.rows(schema) : [];
  return [
    operation.description && operation.description.length > brief(operation).length + 1
      ? h("p", {}, operation.description)
      : null,
    rows.length ? table("Fields of the body", ["Field", "Type", "Meaning"], rows) : null,
    table(
      "Answers",
      ["Status", "When"],
      Object.entries(operation.responses ?? {}).map(([status, { description }]) =>
        h("tr", {}, h("th", { scope: "row" }, h("code", {}, status)), h("td", {}, description)),
      ),
    ),
    attempt(path, method, schema, schemas),
  ].filter(Boolean);
}

function table(caption, heads, rows) {
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h("tbody", {}, rows),
    ),
  );
}

// -- trying a route

function attempt(path, method, schema, schemas) {
  const id = `${method}${path}`;
  const where = h("input", { id: `path-${id}`, spellcheck: "false" });
  where.value = path.slice(1);
  const body = schema
    ? h("textarea", { id: `body-${id}`, rows: 7, spellcheck: "false", class: "code" })
    : null;
  if (body) body.value = JSON.stringify(EXAMPLES[path] ?? schemas.example(schema), null, 2);
  const shown = h("pre", { class: "command", tabindex: 0, hidden: true, "aria-live": "polite" });
  const command = () => commandOf(where.value, method.toUpperCase(), body?.value);
  const copied = iconButton("copy", "Copy as curl", () => copy(command(), copied));
  return h(
    "form",
    {
      class: "try",
      onsubmit: (event) => {
        event.preventDefault();
        send(where.value, method, body?.value, shown);
      },
    },
    h(
      "div",
      { class: "address" },
      h("label", { for: where.id }, "Path"),
      where,
      copied,
      h("button", { type: "submit", class: "primary" }, "Send"),
    ),
    body ? [h("label", { for: body.id }, "Body"), body] : null,
    shown,
  );
}

async function send(path, method, text, shown) {
  shown.hidden = false;
  shown.textContent = "…";
  try {
    const body = text === undefined ? undefined : JSON.parse(text);
    const response = await request(path, { body, method: method.toUpperCase() });
    const answer = await response.text();
    shown.textContent = pretty(answer).slice(0, MAX_SHOWN);
  } catch (error) {
    shown.textContent = error.status ? `${error.status}  ${error.message}` : error.message;
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// -- finding a route

function find() {
  const wanted = byId("find").value.trim().toLowerCase();
  for (const part of byId("routes").children) {
    const routes = [...part.querySelectorAll(".route")];
    for (const route of routes) route.hidden = !route.searched.includes(wanted);
    part.hidden = routes.every((route) => route.hidden);
  }
}

/** An address may end with the name of a route: docs#post/generate. */
function openNamed() {
  const route = byId(decodeURIComponent(location.hash.slice(1)));
  if (!route?.classList.contains("route")) return;
  route.open = true;
  route.scrollIntoView();
}
