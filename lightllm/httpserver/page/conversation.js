/**
 * A conversation as data. A message is
 *
 *   role       user, assistant or tool
 *   content    text
 *   images     of a user: [{ url, name }], as data: URLs
 *   reasoning  of an assistant: text before the content
 *   calls      [{ id, name, arguments }], arguments as text
 *   tokens     [[text, log-probability, [[text, log-probability], …]], …] of all that the model wrote
 *   stats      { tokens, prompt, cached, first, seconds }
 *   finish     why it ended, or "stopped" by the user; `error` what went wrong; `writing` while it is being written
 */

/** The messages of a request. */
export function requestMessages(system, messages) {
  const turns = messages.filter((message) => !message.writing && !isEmpty(message)).map(asTurn);
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

function isEmpty({ role, content, calls }) {
  return role === "assistant" && !content && !calls?.length;
}

function asTurn({ role, content, images, reasoning, calls, callId }) {
  if (role === "tool") return { role, tool_call_id: callId, content };
  if (images?.length) {
    const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    return { role, content: [...parts, ...(content ? [{ type: "text", text: content }] : [])] };
  }
  if (!calls?.length) return { role, content };
  const turn = { role, content: content || null };
  if (reasoning) turn.reasoning_content = reasoning;
  turn.tool_calls = calls.map((call) => ({
    id: call.id,
    type: "function",
    function: { name: call.name, arguments: call.arguments },
  }));
  return turn;
}

/** Puts one event of a stream into the message that is being written. `now`: seconds. */
export function addEvent(message, event, started, now) {
  if (event.usage) {
    message.stats = {
      ...message.stats,
      tokens: event.usage.completion_tokens,
      prompt: event.usage.prompt_tokens,
      cached: event.usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
  }
  const choice = event.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: long, reasoning = long, tool_calls: calls } = choice.delta ?? {};
  if ((content || reasoning || calls?.length) && message.stats.first === undefined)
    message.stats.first = now - started;
  if (content) message.content += content;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const call of calls ?? []) addCall(message, call);
  for (const entry of choice.logprobs?.content ?? []) (message.tokens ??= []).push(compact(entry));
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

function addCall(message, { index, id, function: { name, arguments: text } = {} }) {
  const calls = (message.calls ??= []);
  const call = (calls[index ?? calls.length] ??= { id: "", name: "", arguments: "" });
  if (id) call.id = id;
  if (name) call.name += name;
  if (text) call.arguments += text;
}

function compact({ token, bytes, logprob, top_logprobs: top }) {
  return [
    bytes ?? token,
    rounded(logprob),
    (top ?? []).map((other) => [other.token, rounded(other.logprob)]),
  ];
}

function rounded(logprob) {
  return Math.round(logprob * 1e4) / 1e4;
}
