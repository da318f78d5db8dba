// The vendor's rate limiter against UPSTASH_REDIS_REST_URL: its scripts are flagged, and it contains their SHA-1s.
// `cargo local test official_rate_limiter` starts a REST proxy with an empty database and one that never answers, and
// runs this file.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Ratelimit } from "@upstash/ratelimit";
import { Redis } from "@upstash/redis";

const { UPSTASH_REDIS_REST_URL: url, UPSTASH_REDIS_REST_TOKEN: token, HANGING_URL: hanging } = process.env;
assert.ok(url && token && hanging, "UPSTASH_REDIS_REST_URL, UPSTASH_REDIS_REST_TOKEN and HANGING_URL must be set");

// A retry would count a request twice.
const client = (more = {}) => new Redis({ url, token, retry: { retries: 0 }, ...more });
const redis = client();

const DAY = 24 * 3600 * 1000;
/** The start of a window of a day. */
const MIDNIGHT = 20_000 * DAY;

// Without the cache the server makes every decision; with a timeout a busy machine would change them.
const limiter = (algorithm, more = {}) =>
  new Ratelimit({ redis, limiter: algorithm, prefix: "limit", ephemeralCache: false, timeout: 0, analytics: false, ...more });

/** The limiter sends the time to its scripts, so a fixed clock makes the answers exact. */
const at = (t, now) => {
  t.mock.restoreAll();
  t.mock.method(Date, "now", () => now);
};

const answer = ({ pending, ...rest }) => rest;
const admitted = (answers) => answers.filter(({ success }) => success).length;
const many = (limit, id, count) => Promise.all(Array.from({ length: count }, () => limit.limit(id)));

const ALGORITHMS = {
  "fixed window": () => Ratelimit.fixedWindow(10, "1 d"),
  "sliding window": () => Ratelimit.slidingWindow(10, "1 d"),
  "token bucket": () => Ratelimit.tokenBucket(10, "1 d", 10),
};

for (const [name, algorithm] of Object.entries(ALGORITHMS)) {
  test(`${name}: of 256 requests at once exactly 10 are admitted`, async (t) => {
    at(t, MIDNIGHT);
    for (const [transport, enableAutoPipelining] of [["together", true], ["one by one", false]]) {
      const limit = limiter(algorithm(), { redis: client({ enableAutoPipelining }) });
      const id = `${name} ${transport}`;
      const answers = await many(limit, id, 256);
      assert.equal(admitted(answers), 10, transport);
      const left = answers.filter(({ success }) => success).map(({ remaining }) => remaining);
      assert.deepEqual(left.sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], transport);
      assert.ok(answers.every((it) => it.limit === 10 && it.reset === MIDNIGHT + DAY && it.reason === undefined));
      assert.ok(answers.every(({ success, remaining }) => success || remaining === 0));
      assert.deepEqual(await limit.getRemaining(id), { remaining: 0, reset: MIDNIGHT + DAY, limit: 10 });
      assert.equal((await limit.limit(`${id}, another`)).remaining, 9);
    }
  });

  test(`${name}: the rest is read without being used, and can be returned`, async (t) => {
    at(t, MIDNIGHT);
    const limit = limiter(algorithm(), { prefix: "left" });
    const left = async () => (await limit.getRemaining(name)).remaining;
    assert.equal(await left(), 10);
    assert.equal(await left(), 10);
    assert.deepEqual(answer(await limit.limit(name, { rate: 4 })), {
      success: true,
      limit: 10,
      remaining: 6,
      reset: MIDNIGHT + DAY,
    });
    assert.equal(await left(), 6);
    await limit.limit(name, { rate: -1 });
    assert.equal(await left(), 7);
    await limit.resetUsedTokens(name);
    assert.equal(await left(), 10);
  });

  test(`${name}: a dynamic limit overrides the one in the code`, async (t) => {
    at(t, MIDNIGHT);
    const limit = limiter(algorithm(), { prefix: `dynamic ${name}`, dynamicLimits: true });
    assert.deepEqual(await limit.getDynamicLimit(), { dynamicLimit: null });
    await limit.setDynamicLimit({ limit: 3 });
    assert.deepEqual(await limit.getDynamicLimit(), { dynamicLimit: 3 });
    const answers = await many(limit, "ada", 20);
    assert.ok(answers.every((it) => it.limit === 3));
    assert.equal(admitted(answers), 3);
    await limit.setDynamicLimit({ limit: false });
    assert.equal((await limit.getRemaining("ada")).limit, 10);
  });
}

// Redis expires keys by its own clock, so windows are long and the test's clock jumps.
test("a fixed window ends all at once", async (t) => {
  const limit = limiter(Ratelimit.fixedWindow(10, "1 d"), { prefix: "ends" });
  at(t, MIDNIGHT + DAY - 1);
  assert.equal(admitted(await many(limit, "ada", 20)), 10);
  at(t, MIDNIGHT + DAY);
  const answers = await many(limit, "ada", 20);
  assert.equal(admitted(answers), 10);
  assert.equal(answers[0].reset, MIDNIGHT + 2 * DAY);
});

test("a sliding window releases the last window gradually", async (t) => {
  const limit = limiter(Ratelimit.slidingWindow(10, "1 d"), { prefix: "slides" });
  at(t, MIDNIGHT);
  assert.equal(admitted(await many(limit, "ada", 20)), 10);
  // Three quarters of the last window still count, then half, then an eighth.
  for (const [since, more] of [[1 / 4, 3], [1 / 2, 2], [7 / 8, 4]]) {
    at(t, MIDNIGHT + DAY + DAY * since);
    assert.deepEqual(await limit.getRemaining("ada"), { remaining: more, reset: MIDNIGHT + 2 * DAY, limit: 10 });
    assert.equal(admitted(await many(limit, "ada", 20)), more);
  }
});

test("a token bucket is refilled in whole intervals up to its capacity", async (t) => {
  const limit = limiter(Ratelimit.tokenBucket(4, "1 d", 10), { prefix: "bucket" });
  at(t, MIDNIGHT);
  assert.equal(admitted(await many(limit, "ada", 20)), 10);
  for (const [days, more] of [[0.99, 0], [1, 4], [1.99, 0], [2, 4], [9, 10]]) {
    at(t, MIDNIGHT + days * DAY);
    assert.equal(admitted(await many(limit, "ada", 20)), more, `after ${days} days`);
  }
});

test("the server knows its scripts by their SHA-1s", async (t) => {
  at(t, MIDNIGHT);
  const sent = [];
  const { fetch } = globalThis;
  t.mock.method(globalThis, "fetch", async (where, init) => {
    const response = await fetch(where, init);
    sent.push([JSON.parse(init.body)[0], response.status]);
    return response;
  });
  const one = client({ enableAutoPipelining: false });
  await one.scriptFlush();
  for (const [name, algorithm] of Object.entries(ALGORITHMS)) {
    const limit = limiter(algorithm(), { redis: one, prefix: "sha1" });
    for (const work of [() => limit.limit(name), () => limit.getRemaining(name), () => limit.resetUsedTokens(name)]) {
      sent.length = 0;
      await work();
      await work();
      const known = ["evalsha", 200];
      // All algorithms share the script that resets.
      assert.ok(sent.length === 3 || sent.length === 2, name);
      assert.deepEqual(sent, sent.length === 2 ? [known, known] : [["evalsha", 400], ["eval", 200], known], name);
    }
  }
});

test("the cache refuses those over the limit without a request", async (t) => {
  at(t, MIDNIGHT);
  const cache = new Map();
  const limit = limiter(Ratelimit.fixedWindow(1, "1 d"), { prefix: "cached", ephemeralCache: cache });
  assert.equal((await limit.limit("ada")).success, true);
  const refused = { success: false, limit: 1, remaining: 0, reset: MIDNIGHT + DAY };
  assert.deepEqual(answer(await limit.limit("ada")), refused);
  assert.deepEqual(answer(await limit.limit("ada")), { ...refused, reason: "cacheBlock" });
  assert.deepEqual([...cache], [["cached:ada", MIDNIGHT + DAY]]);

  const without = limiter(Ratelimit.fixedWindow(1, "1 d"), { prefix: "cached" });
  assert.deepEqual(answer(await without.limit("ada")), refused);
});

test("a store that hangs admits all requests, which is why the application has its own limiter", async () => {
  const leave = new AbortController();
  const away = client({ url: hanging, signal: leave.signal });
  const limit = limiter(Ratelimit.fixedWindow(1, "1 d"), { redis: away, prefix: "hangs", timeout: 20 });
  for (const answered of await many(limit, "ada", 3)) {
    assert.deepEqual(answer(answered), { success: true, limit: 0, remaining: 0, reset: 0, reason: "timeout" });
  }
  // Open requests would keep this process running.
  leave.abort();
});

test("an unreachable store is an error, not an answer", async () => {
  // Nothing listens on port 1.
  const limit = limiter(Ratelimit.fixedWindow(1, "1 d"), { redis: client({ url: "http://127.0.0.1:1" }) });
  await assert.rejects(limit.limit("ada"), TypeError);
  await assert.rejects(limit.getRemaining("ada"), TypeError);
});
