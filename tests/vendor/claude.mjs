// The vendor's official client against ANTHROPIC_BASE_URL: the fake has the real wire format.
// `cargo local test the_official_client_works_with_the_fake_claude` starts a fake and runs this file.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic, * as sdk from "@anthropic-ai/sdk";

const baseURL = process.env.ANTHROPIC_BASE_URL;
const apiKey = process.env.ANTHROPIC_API_KEY;
assert.ok(baseURL && apiKey, "ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY must name a fake and its key");

const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 10_000 });

const ask = (text, more = {}) => ({
  model: "claude-sonnet-5-5",
  max_tokens: 1000,
  system: [{ type: "text", text: "You are Frida Kahlo, a painter.", cache_control: { type: "ephemeral", ttl: "1h" } }],
  messages: [{ role: "user", content: [{ type: "text", text, cache_control: { type: "ephemeral" } }] }],
  metadata: { user_id: "u1" },
  thinking: { type: "between_tools" },
  ...more,
});

test("a stream is assembled by the client", async () => {
  const stream = client.messages.stream(ask("Beauty is dead."));
  const events = [];
  let text = "";
  stream.on("streamEvent", (event) => events.push(event.type));
  stream.on("text", (piece) => (text += piece));
  const message = await stream.finalMessage();

  assert.equal(message.content.length, 1);
  assert.equal(message.content[0].text, text);
  assert.match(text, /Frida Kahlo/);
  assert.match(text, /Beauty is dead/);
  assert.equal(message.stop_reason, "end_turn");
  assert.equal(message.stop_details, null);
  assert.match(stream.request_id, /^req_/);
  const deltas = events.filter((type) => type === "content_block_delta");
  assert.ok(deltas.length > 5);
  assert.deepEqual(events, [
    "message_start",
    "content_block_start",
    ...deltas,
    "content_block_stop",
    "message_delta",
    "message_stop",
  ]);
  const { usage } = message;
  assert.ok(usage.output_tokens > deltas.length / 2);
  assert.equal(
    usage.cache_creation.ephemeral_5m_input_tokens + usage.cache_creation.ephemeral_1h_input_tokens,
    usage.cache_creation_input_tokens,
  );
  assert.ok(usage.cache_creation.ephemeral_1h_input_tokens > 0);

  const again = await client.messages.create(ask("Beauty is dead."));
  assert.equal(again.usage.cache_read_input_tokens, usage.cache_creation_input_tokens);
  assert.equal(again.usage.cache_creation_input_tokens, 0);
});

test("the same prompt without streaming gives the same text", async () => {
  const { data, response, request_id } = await client.messages.create(ask("Art is useless.")).withResponse();
  const streamed = await client.messages.stream(ask("Art is useless.")).finalMessage();
  assert.equal(data.type, "message");
  assert.equal(data.role, "assistant");
  assert.equal(data.content[0].text, streamed.content[0].text);
  assert.equal(data.usage.output_tokens, streamed.usage.output_tokens);
  assert.match(request_id, /^req_/);
  for (const of of ["requests", "tokens", "input-tokens", "output-tokens"]) {
    assert.ok(Number(response.headers.get(`anthropic-ratelimit-${of}-limit`)) > 0);
    assert.ok(Number(response.headers.get(`anthropic-ratelimit-${of}-remaining`)) > 0);
    assert.ok(Date.parse(response.headers.get(`anthropic-ratelimit-${of}-reset`)) > Date.now());
  }
});

test("tokens are counted and models are listed", async () => {
  const { model, system, messages } = ask("Art is useless.");
  const { input_tokens } = await client.messages.countTokens({ model, system, messages });
  const { usage } = await client.messages.create(ask("Art is useless."));
  assert.equal(
    input_tokens,
    usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens,
  );
  const models = [];
  for await (const { id, lifecycle } of client.models.list()) models.push([id, lifecycle]);
  assert.deepEqual(models.find(([id]) => id === model), [model, "active"]);
});

test("each error has its class", async (t) => {
  const cases = [
    ["invalid", sdk.BadRequestError, 400, "invalid_request_error"],
    ["own_spend_limit", sdk.BadRequestError, 400, "invalid_request_error"],
    ["auth", sdk.AuthenticationError, 401, "authentication_error"],
    ["billing", sdk.PaymentRequiredError, 402, "billing_error"],
    ["permission", sdk.PermissionDeniedError, 403, "permission_error"],
    ["not_found", sdk.NotFoundError, 404, "not_found_error"],
    ["too_large", sdk.ContentTooLargeError, 413, "request_too_large"],
    ["rate_limited:9", sdk.RateLimitError, 429, "rate_limit_error"],
    ["spend_limit", sdk.RateLimitError, 429, "rate_limit_error", "enforced_spend_limit_reached"],
    ["contract_spend_limit", sdk.RateLimitError, 429, "rate_limit_error", "contract_spend_limit_reached"],
    ["internal", sdk.InternalServerError, 500, "api_error"],
    ["timeout", sdk.InternalServerError, 504, "timeout_error"],
    ["overloaded", sdk.InternalServerError, 529, "overloaded_error"],
  ];
  for (const [fault, kind, status, type, code = null] of cases) {
    await t.test(fault, async () => {
      await assert.rejects(client.messages.create(ask(`Well [[fault:${fault}]]`, { stream: true })), (error) => {
        assert.ok(error instanceof kind, error.constructor.name);
        assert.deepEqual([error.status, error.type, error.errorCode], [status, type, code]);
        assert.equal(error.requestID, error.error.request_id);
        assert.ok(error.apiMessage);
        assert.equal(error.headers.get("retry-after"), fault === "rate_limited:9" ? "9" : null);
        return true;
      });
    });
  }
});

test("invalid requests get the provider's errors", async () => {
  const wrong = (kind, message) => (error) => error instanceof kind && error.apiMessage.includes(message);
  const stranger = client.withOptions({ apiKey: "sk-ant-wrong" });
  await assert.rejects(stranger.messages.create(ask("Hi")), wrong(sdk.AuthenticationError, "invalid x-api-key"));
  for (const [more, kind, message] of [
    [{ temperature: 0.5 }, sdk.BadRequestError, "temperature"],
    [{ model: "claude-1" }, sdk.NotFoundError, "claude-1"],
    [{ messages: undefined }, sdk.BadRequestError, "messages: Field required"],
    [{ max_tokens: undefined }, sdk.BadRequestError, "max_tokens: Field required"],
  ]) {
    await assert.rejects(client.messages.create(ask("Hi", more)), wrong(kind, message));
  }
  await assert.rejects(client.get("/v1/nothing"), wrong(sdk.NotFoundError, "Not found"));
});

test("an error inside a stream is raised with its type", async () => {
  let text = "";
  const stream = client.messages.stream(ask("Well [[fault:error:3]]")).on("text", (piece) => (text += piece));
  await assert.rejects(stream.finalMessage(), (error) => {
    assert.ok(error instanceof sdk.APIError);
    assert.deepEqual([error.status, error.type], [undefined, "overloaded_error"]);
    assert.match(error.requestID, /^req_/);
    return true;
  });
  assert.equal(text.trim().split(" ").length, 3);
});

test("cuts, broken JSON and dropped connections are errors", async () => {
  for (const fault of ["cut:2", "malformed:2", "drop"]) {
    await assert.rejects(client.messages.stream(ask(`Well [[fault:${fault}]]`)).finalMessage(), fault);
  }
  await assert.rejects(client.messages.create(ask("Well [[fault:drop]]")), sdk.APIConnectionError);
});

test("a model thinks first unless the request disables it", async () => {
  const thought = await client.messages.stream(ask("Well", { thinking: undefined })).finalMessage();
  assert.deepEqual(thought.content.map(({ type }) => type), ["thinking", "text"]);
  const { thinking_tokens } = thought.usage.output_tokens_details;
  const silent = await client.messages.create(ask("Well"));
  assert.deepEqual(silent.content.map(({ type }) => type), ["text"]);
  assert.equal(thought.usage.output_tokens, silent.usage.output_tokens + thinking_tokens);
  for (const [model, type] of [["claude-sonnet-5-5", "disabled"], ["claude-haiku-5-5", "between_tools"]]) {
    await assert.rejects(client.messages.create(ask("Well", { model, thinking: { type } })), sdk.BadRequestError);
  }
});

test("unusual replies are whole", async () => {
  const refused = await client.messages.stream(ask("Well [[fault:refusal]]")).finalMessage();
  assert.deepEqual([refused.stop_reason, refused.stop_details.type], ["refusal", "refusal"]);
  const long = await client.messages.stream(ask("Well [[fault:max_tokens]]")).finalMessage();
  assert.equal(long.stop_reason, "max_tokens");
  const thought = await client.messages.stream(ask("Well [[fault:thinking]]")).finalMessage();
  assert.deepEqual(thought.content.map(({ type }) => type), ["thinking"]);
  assert.ok(thought.content[0].signature);
  assert.equal(thought.usage.output_tokens_details.thinking_tokens, thought.usage.output_tokens);

  const types = new Set();
  for await (const event of await client.messages.create(ask("Well", { stream: true }))) types.add(event.type);
  assert.ok(types.has("message_stop") && !types.has("ping"));
});

test("the client retries if and when the answer says so", async (t) => {
  const faults = (body) => fetch(`${baseURL}/local/claude/faults`, { method: "POST", body: JSON.stringify(body) });
  const inOneSecond = () => new Date(Date.now() + 1000).toUTCString();
  // Fault, headers, calls of a client with two retries, and the outcome.
  for (const [fault, headers, calls, outcome] of [
    ["overloaded", { "retry-after-ms": "5" }, 2, "answered"],
    ["rate_limited:0", {}, 2, "answered"],
    ["rate_limited:7", { "retry-after-ms": "5" }, 2, "answered"],
    ["rate_limited:7", { "retry-after": inOneSecond() }, 2, "answered"],
    ["timeout", { "retry-after-ms": "5" }, 2, "answered"],
    ["invalid", {}, 1, sdk.BadRequestError],
    ["invalid", { "x-should-retry": "true", "retry-after-ms": "5" }, 2, "answered"],
    ["internal", { "x-should-retry": "false" }, 1, sdk.InternalServerError],
    ["spend_limit", { "x-should-retry": "false" }, 1, sdk.RateLimitError],
    ["auth", {}, 1, sdk.AuthenticationError],
  ]) {
    await t.test(`${fault} ${JSON.stringify(headers)}`, async () => {
      let called = 0;
      const counting = (...request) => (called++, fetch(...request));
      const patient = client.withOptions({ maxRetries: 2, fetch: counting });
      await faults({ fault, headers });
      const stream = patient.messages.stream(ask("Well"));
      if (outcome === "answered") assert.match(await stream.finalText(), /Frida Kahlo/);
      else await assert.rejects(stream.finalMessage(), (error) => error instanceof outcome);
      assert.equal(called, calls);
    });
  }
});

test("a stream that has started is not retried", async () => {
  let called = 0;
  const counting = (...request) => (called++, fetch(...request));
  const patient = client.withOptions({ maxRetries: 2, fetch: counting });
  for (const fault of ["error:2", "cut:2"]) {
    await assert.rejects(patient.messages.stream(ask(`Well [[fault:${fault}]]`)).finalMessage(), fault);
  }
  assert.equal(called, 2);
});

test("keys of one organisation share its id and its limits", async () => {
  const keys = process.env.KEYS_OF_TWO_ORGANISATIONS.split(",");
  const seen = [];
  for (const apiKey of keys) {
    const { response } = await client.withOptions({ apiKey }).messages.create(ask("Well")).withResponse();
    const header = (name) => response.headers.get(name);
    seen.push([header("anthropic-organization-id"), Number(header("anthropic-ratelimit-requests-remaining"))]);
  }
  const [[first, left], [second, leftThen], [third, leftElsewhere]] = seen;
  assert.deepEqual([second, leftThen], [first, left - 1]);
  assert.notEqual(third, first);
  assert.equal(leftElsewhere, left);
});

test("faults can be queued from outside", async () => {
  const faults = (init) => fetch(`${baseURL}/local/claude/faults`, init);
  const queued = await faults({ method: "POST", body: JSON.stringify({ fault: "hold:1", text: "one two three" }) });
  assert.equal(queued.status, 200);
  const stream = client.messages.stream(ask("Go on"));
  await new Promise((resolve) => stream.once("text", resolve));
  await fetch(`${baseURL}/local/claude/release`, { method: "POST" });
  assert.equal(await stream.finalText(), "one two three");
  assert.equal((await faults({ method: "DELETE" })).status, 200);
});
