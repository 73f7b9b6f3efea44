// openai and ai, the latter with the default model of @ai-sdk/openai (responses) and with those for chats and Messages.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { generateText, isStepCount, Output, streamText, tool } from 'ai';
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { z } from 'zod';

const [demo, agent] = process.argv.slice(2);
const key = 'secret';
const capital = 'What is the capital of France?';
const sums = [['What is 7 plus 5?', 'It is 12.'], ['What are 7 plus 5 and 20 plus 3?', 'They are 12 and 23.']];
const story = 'Tell a long story.';
const long = 'hello '.repeat(5000);
const Capital = z.object({ city: z.enum(['Paris', 'Rome']), inhabitants: z.number().int() });

async function metric(name) {
  const page = await (await fetch(`${agent}/metrics`, { headers: { authorization: `Bearer ${key}` } })).text();
  return Number(page.split('\n').find((line) => line.startsWith(`${name}{`)).split(' ').at(-1));
}

// What is done within leaves a stream of the agent's server, which ends the request.
async function freed(leave) {
  const before = await metric('lightllm_router_aborted_total');
  await leave();
  const deadline = Date.now() + 60000;
  while ((await metric('lightllm_router_aborted_total')) === before || (await metric('lightllm_batch_current_size'))) {
    assert(Date.now() < deadline, 'the request goes on');
    await new Promise((then) => setTimeout(then, 20));
  }
}

async function openai() {
  const client = new OpenAI({ baseURL: `${demo}/v1`, apiKey: key, maxRetries: 0 });
  const ask = { model: 'gpt-5', messages: [{ role: 'user', content: capital }], temperature: 0 };
  const whole = await client.chat.completions.create(ask);
  const text = whole.choices[0].message.content;
  assert.match(text, /Paris/);
  let pieces = '';
  let usage;
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
    pieces += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(pieces, text);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(await client.chat.completions.stream(ask).finalContent(), text);
  const parsed = await client.chat.completions.parse({ ...ask, response_format: zodResponseFormat(Capital, 'capital') });
  assert(Capital.parse(parsed.choices[0].message.parsed));
  assert.equal((await client.completions.create({ model: 'x', prompt: '2+3=', temperature: 0, max_tokens: 5 })).choices[0].text, '5');
  const response = await client.responses.create({ model: 'gpt-5', input: capital, temperature: 0 });
  assert.equal(response.output_text, text);
  const stream = client.responses.stream({ model: 'gpt-5', input: capital, temperature: 0 });
  assert.equal((await stream.finalResponse()).output_text, text);
  await assert.rejects(client.chat.completions.create({ ...ask, messages: [{ role: 'user', content: long }] }), (error) => {
    return error instanceof OpenAI.BadRequestError && error.code === 'context_length_exceeded';
  });

  const caller = new OpenAI({ baseURL: `${agent}/v1`, apiKey: key, maxRetries: 0 });
  const parameters = { type: 'object', properties: { a: { type: 'integer' }, b: { type: 'integer' } }, required: ['a', 'b'] };
  const add = { name: 'add', parameters, parse: JSON.parse, function: ({ a, b }) => `the sum is ${a + b}` };
  for (const [question, answer] of sums) {
    for (const streamed of [false, true]) {
      const fields = { model: 'x', messages: [{ role: 'user', content: question }], tools: [{ type: 'function', function: add }] };
      assert.equal(await caller.chat.completions.runTools({ ...fields, stream: streamed }).finalContent(), answer);
    }
  }
  await freed(async () => {
    const told = await caller.chat.completions.create({ model: 'x', messages: [{ role: 'user', content: story }], stream: true });
    for await (const _ of told) break;
  });
}

async function ai(model, caller) {
  const whole = await generateText({ model, prompt: capital });
  assert.match(whole.text, /Paris/);
  assert(whole.usage.outputTokens > 3);
  const stream = streamText({ model, prompt: capital });
  let text = '';
  for await (const piece of stream.textStream) text += piece;
  assert.match(text, /Paris/);
  assert((await stream.usage).outputTokens > 3);
  assert.equal(await stream.finishReason, 'stop');
  const formed = await generateText({ model, prompt: capital, output: Output.object({ schema: Capital }) });
  assert(Capital.parse(formed.output));
  const add = tool({
    description: 'Adds two numbers.',
    inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
    execute: async ({ a, b }) => `the sum is ${a + b}`,
  });
  const forced = await generateText({ model, prompt: capital, tools: { add: { ...add, execute: undefined } }, toolChoice: { type: 'tool', toolName: 'add' }, maxOutputTokens: 300 });
  assert.equal(forced.toolCalls[0].toolName, 'add');
  for (const [prompt, answer] of sums) {
    const loop = { model: caller, prompt, tools: { add }, stopWhen: isStepCount(5) };
    assert.equal((await generateText(loop)).text, answer);
    const streamed = streamText(loop);
    await streamed.consumeStream();
    assert.equal(await streamed.text, answer);
    assert.equal((await streamed.steps).length, 2);
  }
  await assert.rejects(generateText({ model, prompt: long, maxRetries: 0 }), (error) => error.statusCode === 400 && /context length|too long/.test(error.message));
  await freed(async () => {
    const leaving = new AbortController();
    const told = streamText({ model: caller, prompt: story, abortSignal: leaving.signal, onError: () => {} });
    for await (const _ of told.textStream) leaving.abort();
  });
}

await openai();
console.log('openai');
const makers = {
  'default of @ai-sdk/openai': (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: key })('gpt-4o'),
  'chats of @ai-sdk/openai': (url) => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).chat('gpt-4o'),
  '@ai-sdk/anthropic': (url) => createAnthropic({ baseURL: `${url}/v1`, apiKey: key })('claude-haiku-4-5'),
  '@ai-sdk/openai-compatible': (url) =>
    createOpenAICompatible({ name: 'lightllm', baseURL: `${url}/v1`, apiKey: key, includeUsage: true, supportsStructuredOutputs: true })('demo'),
};
for (const [name, make] of Object.entries(makers)) {
  await ai(make(demo), make(agent));
  console.log(name);
}
console.log('done');
