// The vendor's official client against UPSTASH_REDIS_REST_URL: the REST proxy has the real wire format.
// `cargo local test the_official_client_works_with_the_rest_proxy` starts one with an empty database and runs this file.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Redis, errors } from "@upstash/redis";

const { UPSTASH_REDIS_REST_URL: url, UPSTASH_REDIS_REST_TOKEN: token } = process.env;
assert.ok(url && token, "UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN must name a REST proxy and its token");

// A retry would hide a missing answer.
const client = (more = {}) => new Redis({ url, token, retry: { retries: 0 }, ...more });
const redis = client();
const one = client({ enableAutoPipelining: false });

// All requests of the client and their answers.
const sent = [];
const { fetch } = globalThis;
globalThis.fetch = async (where, init) => {
  const response = await fetch(where, init);
  const { pathname } = new URL(where);
  const headers = new Headers(init.headers);
  sent.push({ path: pathname, body: JSON.parse(init.body), headers, status: response.status, answer: response.headers });
  return response;
};
const requests = async (work) => {
  const before = sent.length;
  await work();
  return sent.slice(before);
};

const keys = (() => {
  let number = 0;
  return (name) => `${name}:${(number += 1)}`;
})();
const refused = (pattern) => (error) => {
  assert.ok(error instanceof errors.UpstashError, error.stack);
  assert.match(error.message, pattern);
  return true;
};

const plain = client({ automaticDeserialization: false });
const unencoded = client({ responseEncoding: false });
const raw = client({ automaticDeserialization: false, responseEncoding: false });
const everyClient = { "base64, parsed": redis, "base64, plain": plain, "text, parsed": unencoded, "text, plain": raw, one };

test("values come back as they were sent, in every encoding", async () => {
  const texts = [
    "plain",
    "",
    " ",
    "é ✓ 漢字 👩‍🚀",
    "nul \0, bell \u0007, tab \t, lines \r\n\u2028, quote \" and \\",
    "T0s=",
    "bm90IGRlY29kZWQgdHdpY2U=",
    "[not json",
    "OK",
    "a".repeat(100_000),
  ];
  for (const [name, reader] of Object.entries(everyClient)) {
    const key = keys("text");
    for (const text of texts) {
      assert.equal(await reader.set(key, text), "OK", name);
      assert.equal(await reader.get(key), text, name);
      assert.deepEqual(await reader.mget(key, "none", key), [text, null, text], name);
    }
  }
});

test("JSON is written and read by the client", async () => {
  const key = keys("json");
  for (const value of [{ a: [1, { b: null }], "é": "✓" }, [], [1, "2", [true]], 7, -0.5, true, false]) {
    await redis.set(key, value);
    assert.deepEqual(await redis.get(key), value);
    assert.equal(await plain.get(key), JSON.stringify(value));
    assert.equal(await raw.get(key), JSON.stringify(value));
  }
  await redis.set(key, null);
  assert.equal(await redis.get(key), null);
  assert.equal(await plain.get(key), "null");
  for (const text of ["1.50", "007", "9007199254740993", "1e5"]) {
    await redis.set(key, text);
    assert.equal(await redis.get(key), text, "a number that would not survive stays a string");
  }
});

test("numbers are stored as the client wrote them", async () => {
  const key = keys("number");
  const awkward = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 1e20, 1e21, 1e-7, -0.000001, 2 ** 53];
  const some = Array.from({ length: 200 }, (_, n) => Math.sin(n + 1) * 10 ** ((n % 40) - 20));
  for (const number of [...awkward, ...some]) {
    await redis.set(key, number);
    assert.equal(await plain.get(key), String(number));
  }
});

test("bytes that are no text are replaced, not dropped", async () => {
  const key = keys("bytes");
  await redis.setbit(key, 0, 1);
  await redis.setrange(key, 1, "a");
  for (const reader of Object.values(everyClient)) assert.equal(await reader.get(key), "\ufffda");
  assert.equal(await redis.strlen(key), 2);
});

test("replies keep their shape", async () => {
  const script = "return {1, 'one', false, {2, 'two', {3, 'OK', {}}}, {}, -7}";
  const shape = [1, "one", null, [2, "two", [3, "OK", []]], [], -7];
  for (const [name, reader] of Object.entries(everyClient)) {
    assert.deepEqual(await reader.eval(script, [], []), shape, name);
    assert.equal(await reader.eval("return false", [], []), null, name);
    assert.equal(await reader.eval("return 3.99", [], []), 3, name);
    assert.equal(await reader.eval("return redis.status_reply('FINE')", [], []), "FINE", name);
    assert.equal(await reader.eval("return redis.status_reply('OK')", [], []), "OK", name);
    assert.deepEqual(await reader.eval("return {redis.status_reply('OK')}", [], []), ["OK"], name);
    assert.equal(await reader.ping(), "PONG", name);
    assert.equal(await reader.echo("hello"), "hello", name);
  }
  assert.equal(await raw.eval("return ARGV[1]", [], [Number.MAX_SAFE_INTEGER]), "9007199254740991");
});

test("strings and counters", async () => {
  const [key, other] = [keys("string"), keys("string")];
  assert.equal(await redis.set(key, "a", { nx: true }), "OK");
  assert.equal(await redis.set(key, "b", { nx: true }), null);
  assert.equal(await redis.set(key, "b", { xx: true, get: true }), "a");
  assert.equal(await redis.append(key, "cd"), 3);
  assert.equal(await redis.getrange(key, 1, -1), "cd");
  assert.equal(await redis.strlen(key), 3);
  assert.equal(await redis.getset(key, "z"), "bcd");
  assert.equal(await redis.getdel(key), "z");
  assert.equal(await redis.get(key), null);
  assert.equal(await redis.incr(key), 1);
  assert.equal(await redis.incrby(key, 41), 42);
  assert.equal(await redis.decr(key), 41);
  assert.equal(await redis.decrby(key, 40), 1);
  assert.equal(await redis.incrbyfloat(key, 0.5), 1.5);
  assert.equal(await redis.mset({ [key]: { a: 1 }, [other]: "x" }), "OK");
  assert.equal(await redis.msetnx({ [key]: 1 }), 0);
  assert.deepEqual(await redis.mget([key, other]), [{ a: 1 }, "x"]);
  assert.equal(await redis.exists(key, other, "none"), 2);
  assert.equal(await redis.type(key), "string");
  assert.equal(await redis.rename(key, other), "OK");
  assert.equal(await redis.copy(other, key), "COPIED");
  assert.equal(await redis.del(key, other, "none"), 2);
  assert.equal(await redis.unlink("none"), 0);
});

test("keys expire as requested", async () => {
  const key = keys("ttl");
  assert.equal(await redis.ttl(key), -2);
  await redis.set(key, 1);
  assert.equal(await redis.ttl(key), -1);
  assert.equal(await redis.expire(key, 1000), 1);
  const within = (left, most) => assert.ok(left > most * 0.9 && left <= most, `${left} of ${most}`);
  within(await redis.ttl(key), 1000);
  assert.equal(await redis.pexpire(key, 2_000_000, "GT"), 1);
  within(await redis.pttl(key), 2_000_000);
  assert.equal(await redis.expire(key, 5000, "NX"), 0);
  await redis.set(key, 2, { keepTtl: true });
  within(await redis.ttl(key), 2000);
  assert.equal(await redis.persist(key), 1);
  assert.equal(await redis.ttl(key), -1);
  await redis.set(key, 3, { ex: 500 });
  within(await redis.ttl(key), 500);
  await redis.set(key, 4, { px: 700_000 });
  within(await redis.ttl(key), 700);
  assert.equal(await redis.getex(key, { ex: 900 }), 4);
  within(await redis.ttl(key), 900);
  const [seconds] = await redis.time();
  assert.equal(await redis.setex(key, 300, 5), "OK");
  assert.equal(await redis.expireat(key, Number(seconds) + 4000), 1);
  within(await redis.ttl(key), 4000);
  assert.equal(await redis.expireat(key, Number(seconds) - 1), 1);
  assert.equal(await redis.exists(key), 0);
});

test("hashes", async () => {
  const key = keys("hash");
  assert.equal(await redis.hgetall(key), null);
  assert.equal(await redis.hset(key, { name: "Ada", age: 36, tags: ["a", "b"], "é": "✓" }), 4);
  assert.equal(await redis.hget(key, "name"), "Ada");
  assert.equal(await redis.hget(key, "none"), null);
  assert.deepEqual(await redis.hgetall(key), { name: "Ada", age: 36, tags: ["a", "b"], "é": "✓" });
  assert.deepEqual(await redis.hmget(key, "age", "none"), { age: 36, none: null });
  assert.equal(await redis.hincrby(key, "age", 1), 37);
  assert.equal(await redis.hincrbyfloat(key, "share", 0.25), 0.25);
  assert.equal(await redis.hsetnx(key, "name", "Eve"), 0);
  assert.equal(await redis.hexists(key, "name"), 1);
  assert.deepEqual((await redis.hkeys(key)).sort(), ["age", "name", "share", "tags", "é"]);
  assert.equal((await redis.hvals(key)).length, 5);
  assert.equal(await redis.hlen(key), 5);
  assert.equal(await redis.hdel(key, "tags", "none"), 1);
  const [cursor, found] = await redis.hscan(key, 0);
  assert.deepEqual([cursor, found.length], ["0", 8]);
});

test("sorted sets", async () => {
  const key = keys("zset");
  assert.equal(await redis.zadd(key, { score: 1.5, member: "a" }, { score: 2, member: { b: 1 } }), 2);
  assert.equal(await redis.zadd(key, { xx: true, gt: true, ch: true }, { score: 3, member: "a" }), 1);
  assert.deepEqual(await redis.zrange(key, 0, -1), [{ b: 1 }, "a"]);
  assert.deepEqual(await redis.zrange(key, 0, -1, { withScores: true, rev: true }), ["a", 3, { b: 1 }, 2]);
  assert.deepEqual(await redis.zrange(key, 2.5, "+inf", { byScore: true }), ["a"]);
  assert.equal(await redis.zscore(key, "a"), 3);
  assert.equal(await redis.zscore(key, "none"), null);
  assert.deepEqual(await redis.zmscore(key, ["a", "none"]), [3, null]);
  // Redis before 7.2 prints a score with 17 digits, 3.2999999999999998, and later versions print the shortest form, 3.3.
  // Both are the same number, but the client's parser keeps a number as text if printing it changes its digits.
  assert.equal(Number(await redis.zincrby(key, 0.1 + 0.2, "a")), 3 + (0.1 + 0.2));
  assert.equal(await redis.zrank(key, "a"), 1);
  assert.equal(await redis.zcount(key, "-inf", "(3"), 1);
  assert.equal(await redis.zcard(key), 2);
  assert.deepEqual(await redis.zpopmin(key), [{ b: 1 }, 2]);
  assert.equal(await redis.zremrangebyscore(key, 0, "+inf"), 1);
  assert.equal(await redis.exists(key), 0);
});

test("lists, sets and streams", async () => {
  const [list, set, stream] = [keys("list"), keys("set"), keys("stream")];
  assert.equal(await redis.rpush(list, "a", 1, { b: 2 }), 3);
  assert.deepEqual(await redis.lrange(list, 0, -1), ["a", 1, { b: 2 }]);
  assert.equal(await redis.lpop(list), "a");
  assert.deepEqual(await redis.rpop(list, 5), [{ b: 2 }, 1]);
  assert.equal(await redis.lpop(list), null);
  assert.equal(await redis.sadd(set, "a", "b", "a"), 2);
  assert.deepEqual((await redis.smembers(set)).sort(), ["a", "b"]);
  assert.deepEqual(await redis.smismember(set, ["a", "z"]), [1, 0]);
  assert.equal(await redis.xadd(stream, "1-1", { name: "Ada", age: 36 }), "1-1");
  assert.deepEqual(await redis.xrange(stream, "-", "+"), { "1-1": { name: "Ada", age: 36 } });
});

test("SCAN finds every key once the cursor is 0 again", async () => {
  const mine = Array.from({ length: 500 }, (_, n) => `scan:${n}`);
  await Promise.all(mine.map((key) => redis.set(key, 1)));
  await redis.sadd("scan:set", 1);
  const found = new Set();
  let cursor = "0";
  do {
    const [next, page] = await redis.scan(cursor, { match: "scan:*", count: 50, type: "string" });
    for (const key of page) found.add(key);
    cursor = next;
  } while (cursor !== "0");
  assert.deepEqual([...found].sort(), mine.sort());
});

test("a pipeline is one request, and an error is one command's", async () => {
  const key = keys("pipeline");
  const seen = await requests(async () => {
    const pipeline = redis.pipeline().set(key, { a: 1 }).get(key).incr(key).hgetall("none").strlen(key);
    assert.equal(pipeline.length(), 5);
    const results = await pipeline.exec({ keepErrors: true });
    const [set, get, incr, ...rest] = results;
    assert.deepEqual([set, get].map(({ result }) => result), ["OK", { a: 1 }]);
    assert.match(incr.error, /^ERR value is not an integer/);
    assert.deepEqual(rest, [{ error: undefined, result: null }, { error: undefined, result: 7 }]);
  });
  assert.deepEqual(seen.map(({ path, status }) => [path, status]), [["/pipeline", 200]]);
  await assert.rejects(redis.pipeline().get(key).lpush(key, 1).exec(), refused(/^Command 2 \[ lpush \] failed: WRONGTYPE /));
  const undefined_ = redis.pipeline().incrby(keys("n"), undefined).strlen(key);
  assert.deepEqual((await undefined_.exec({ keepErrors: true })).map(({ error }) => error), [
    "ERR null args are not supported",
    undefined,
  ]);
});

test("commands of one tick are sent together, reads separate from writes", async () => {
  const all = Array.from({ length: 20 }, () => keys("auto"));
  const seen = await requests(async () => {
    assert.deepEqual(await Promise.all(all.map((key, n) => redis.set(key, n))), all.map(() => "OK"));
    const mixed = all.flatMap((key) => [redis.get(key), redis.incr(key)]);
    const values = await Promise.all(mixed);
    // Both requests run concurrently, so a read may see either value.
    values.forEach((value, n) => assert.ok(n % 2 ? value === (n + 1) / 2 : [n / 2, n / 2 + 1].includes(value)));
  });
  assert.deepEqual(seen.map(({ path, body }) => [path, body.length]), Array(3).fill(["/pipeline", 20]));

  const [counter, text] = [keys("auto"), keys("auto")];
  await redis.set(text, "text");
  const settled = await Promise.allSettled([redis.incr(counter), redis.incr(text), redis.incr(counter)]);
  assert.deepEqual(settled.map(({ status }) => status), ["fulfilled", "rejected", "fulfilled"]);
  assert.ok(refused(/^Command failed: ERR value is not an integer/)(settled[1].reason));
  assert.deepEqual([settled[0].value, settled[2].value], [1, 2]);
});

test("a transaction runs whole", async () => {
  const [key, other] = [keys("multi"), keys("multi")];
  const transaction = () => redis.multi().set(key, { a: "é" }).get(key).incr(other).lrange("none", 0, -1);
  const seen = await requests(async () => {
    assert.deepEqual(await transaction().exec(), ["OK", { a: "é" }, 1, []]);
  });
  assert.deepEqual(seen.map(({ path }) => path), ["/multi-exec"]);

  // A command that fails when it runs does not stop the others.
  const mixed = redis.multi().incr(other).lpush(other, 1).incr(other);
  const [first, wrong, last] = await mixed.exec({ keepErrors: true });
  assert.deepEqual([first.result, last.result], [2, 3]);
  assert.match(wrong.error, /^WRONGTYPE /);

  const counter = keys("multi");
  const pairs = await Promise.all(Array.from({ length: 50 }, () => redis.multi().incr(counter).incr(counter).exec()));
  for (const [low, high] of pairs) assert.equal(high, low + 1);
  assert.equal(await redis.get(counter), 100);
});

test("a transaction with an invalid command is discarded", async () => {
  const key = keys("discarded");
  for (const transaction of [
    redis.multi().incr(key).hset(key, {}),
    redis.multi().incr(key).set(key, undefined),
    redis.multi().incr(key).xread("other", "$", { blockMS: 1 }),
  ]) {
    await assert.rejects(transaction.exec(), refused(/^EXECABORT Transaction discarded/));
  }
  assert.equal(await redis.exists(key), 0);
});

const FLAGGED = `#!lua flags=allow-key-locking
local count = redis.call("INCRBY", KEYS[1], ARGV[1])
redis.call("PEXPIRE", KEYS[1], ARGV[2] * 2 + 1000)
return {count, redis.call("GET", KEYS[2])}`;

test("scripts run by their SHA-1, and are sent if it is unknown", async () => {
  const script = "return {KEYS[1], ARGV[1], ARGV[2]}";
  const evalsha = (sha1) => redis.evalsha(sha1, ["k"], ["a", { b: 1 }]);
  const sha1 = await redis.scriptLoad(script);
  assert.match(sha1, /^[0-9a-f]{40}$/);
  assert.deepEqual(await redis.scriptExists(sha1, "0".repeat(40)), [1, 0]);
  assert.deepEqual(await evalsha(sha1), ["k", "a", { b: 1 }]);
  assert.equal(await redis.scriptFlush(), "OK");
  assert.deepEqual(await redis.scriptExists(sha1), [0]);
  await assert.rejects(evalsha(sha1), refused(/NOSCRIPT No matching script\. Please use EVAL\./));
  assert.deepEqual(await redis.eval(script, ["k"], ["a", { b: 1 }]), ["k", "a", { b: 1 }]);
  assert.deepEqual(await evalsha(sha1), ["k", "a", { b: 1 }]);
  assert.deepEqual(await redis.evalRo(script, ["k"], [1, 2]), ["k", 1, 2]);
  assert.deepEqual(await redis.evalshaRo(sha1, ["k"], [1, 2]), ["k", 1, 2]);

  const [counter, other] = [keys("script"), keys("script")];
  await redis.set(other, { a: 1 });
  const ours = one.createScript(FLAGGED);
  const run = () => ours.exec([counter, other], [2, 5000]);
  const first = await requests(async () => assert.deepEqual(await run(), [2, { a: 1 }]));
  assert.deepEqual(first.map(({ body, status }) => [body[0], status]), [["evalsha", 400], ["eval", 200]]);
  const second = await requests(async () => assert.deepEqual(await run(), [4, { a: 1 }]));
  assert.deepEqual(second.map(({ body, status }) => [body[0], status]), [["evalsha", 200]]);
  assert.deepEqual(await redis.scriptExists(ours.sha1), [1]);
  assert.equal(await redis.scriptLoad(FLAGGED), ours.sha1);
  assert.ok((await redis.pttl(counter)) > 0);

  const results = await redis.multi().evalsha(ours.sha1, [counter, other], ["1", "1"]).get(counter).exec();
  assert.deepEqual(results, [[5, { a: 1 }], 5]);
  const readonly = redis.createScript("return redis.call('GET', KEYS[1])", { readonly: true });
  assert.equal(await readonly.exec([counter], []), 5);
});

test("a flagged script may touch the keys that it declares and no other", async () => {
  const [declared, other] = [keys("declared"), keys("undeclared")];
  const message =
    `ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set. Key was: ${other}`;
  const whole = (error) => error instanceof errors.UpstashError && error.message === `Command failed: ${message}`;
  const flag = "#!lua flags=allow-key-locking\n";
  const body = "redis.call('SET', KEYS[1], 1) return redis.call('INCR', ARGV[1])";
  await assert.rejects(redis.eval(flag + body, [declared], [other]), whole);
  await assert.rejects(redis.eval(flag + body, [declared, declared], [other]), whole);
  assert.deepEqual(await redis.mget(declared, other), [1, null], "what ran before the refusal stays");
  for (const call of ["'MGET', KEYS[1], ARGV[1]", "'HSET', ARGV[1], KEYS[1], 1", "'RENAME', KEYS[1], ARGV[1]"]) {
    await assert.rejects(redis.eval(`${flag}return redis.call(${call})`, [declared], [other]), whole, call);
    assert.equal(await redis.eval(`${flag}return redis.pcall(${call}).err`, [declared], [other]), message, call);
  }
  assert.equal(await redis.eval(flag + body, [declared, other], [other]), 1);
  assert.equal(await redis.eval(body, [declared], [other]), 2, "without the flag every key may be touched");
  assert.equal(await redis.eval(`\n${flag}${body}`.replace("#!lua", "--"), [declared], [other]), 3);
});

test("errors have the client's class and the server's text", async () => {
  const key = keys("errors");
  await redis.set(key, "text");
  const execute = (...command) => one.exec(command);
  for (const [call, pattern] of [
    [() => one.lpush(key, 1), /^WRONGTYPE Operation against a key holding the wrong kind of value, command was: \["lpush"/],
    [() => one.incr(key), /^ERR value is not an integer or out of range, command was: /],
    [() => one.eval("return nothing()", [], []), /^ERR .*nothing/],
    [() => one.eval("return +", [], []), /^ERR Error compiling script/],
    [() => one.eval("return redis.error_reply('MINE own words')", [], []), /^MINE own words/],
    [() => one.set(key, 1, { ex: 0 }), /^ERR invalid expire time in 'set' command, /],
    [() => one.set(key, undefined), /^ERR null args are not supported, /],
    [() => execute("SET", key, "a", "EX"), /^ERR syntax error, /],
    [() => execute("GET"), /^ERR wrong number of arguments for 'get' command, /],
    [() => execute("NONESUCH"), /^ERR unknown command 'NONESUCH'/],
    [() => execute("SUBSCRIBE", "x"), /^ERR Command is not available: 'SUBSCRIBE'\. See /],
  ]) {
    const seen = await requests(() => assert.rejects(call(), refused(pattern)));
    assert.deepEqual(seen.map(({ status }) => status), [400]);
  }
  const stranger = client({ token: "another", enableAutoPipelining: false });
  const seen = await requests(async () => {
    await assert.rejects(stranger.get(key), refused(/^WRONGPASS invalid or missing auth token/));
    await assert.rejects(stranger.pipeline().get(key).exec(), refused(/^WRONGPASS /));
    await assert.rejects(stranger.multi().get(key).exec(), refused(/^WRONGPASS /));
  });
  assert.deepEqual(seen.map(({ status }) => status), [401, 401, 401]);
  assert.equal(await redis.get(key), "text");
});

test("the client requests base64 and returns the sync token", async () => {
  const own = client({ enableAutoPipelining: false });
  const seen = await requests(async () => {
    await own.incr(keys("sync"));
    await own.pipeline().incr(keys("sync")).exec();
    await own.multi().incr(keys("sync")).exec();
    await own.get(keys("sync"));
  });
  const given = seen.map(({ answer }) => answer.get("upstash-sync-token"));
  assert.equal(new Set(given).size, 4);
  assert.ok(given.every(Boolean));
  assert.deepEqual(seen.map(({ headers }) => headers.get("upstash-sync-token")), ["", ...given.slice(0, 3)]);
  assert.ok(seen.every(({ headers }) => headers.get("upstash-encoding") === "base64"));

  const without = client({ enableAutoPipelining: false, readYourWrites: false, responseEncoding: false });
  const [request] = await requests(() => without.ping());
  assert.equal(request.headers.get("upstash-sync-token"), null);
  assert.equal(request.headers.get("upstash-encoding"), null);
});
