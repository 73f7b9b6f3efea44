/** Requests as curl commands. They name the key's place in the environment, never the key. */

import { address, hasKey } from "./api.js";
import { byId, copy } from "./dom.js";

const MAX_IMAGE = 200;

/** The command for a request; `json`: its body, if it has one. */
export function commandOf(path, method, json, options = "") {
  const lines = [`curl ${options}${quoted(address(path))}`];
  if (method !== "GET" && json === undefined) lines.push(`-X ${method}`);
  if (hasKey()) lines.push('-H "Authorization: Bearer $LIGHTLLM_API_KEY"');
  if (json !== undefined)
    lines.push("-H 'Content-Type: application/json'", `-d '${json.replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n  ");
}

export function showCurl(body) {
  const text = commandOf(
    "v1/chat/completions",
    "POST",
    JSON.stringify(body, shorten, 2),
    body.stream ? "-N " : "",
  );
  byId("curl-text").textContent = text;
  const button = byId("copy-curl");
  button.onclick = () => copy(text, button);
  byId("curl-dialog").showModal();
}

function shorten(name, value) {
  const isImage = name === "url" && typeof value === "string" && value.length > MAX_IMAGE;
  return isImage ? `${value.slice(0, 60)}… (${value.length} characters)` : value;
}

function quoted(text) {
  return /^[\w:/.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
