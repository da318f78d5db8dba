// The page after paying, on a document and a service of its own.
// `cargo local test the_page_after_paying` runs this file.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

const read = (name) => readFile(new URL(`../../public/billing/${name}`, import.meta.url), "utf8");
const html = await read("success.html");
const script = await read("success.js");

const session = (plan) => ({ status: 200, ok: true, json: async () => ({ user: { plan }, quota: { limit: 100 } }) });
const refused = (status) => ({ status, ok: false });

let visits = 0;

/** Opens the page while the service gives these answers, the last one for ever. */
const visit = async (...answers) => {
  const states = [...html.matchAll(/data-state="([^"]+)"( hidden)?/g)];
  const sections = states.map(([, state, hidden]) => ({ dataset: { state }, hidden: Boolean(hidden) }));
  const visible = () => sections.filter(({ hidden }) => !hidden).map(({ dataset }) => dataset.state);
  const limit = { textContent: "" };
  const before = visible();

  const requests = [];
  globalThis.document = { title: "", querySelectorAll: () => sections, getElementById: () => limit };
  globalThis.fetch = async (path, { method }) => {
    assert.deepEqual(visible(), ["waiting"], "until it is true");
    requests.push(`${method} ${path}`);
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (answer instanceof Error) throw answer;
    return answer;
  };
  const realTimer = globalThis.setTimeout;
  globalThis.setTimeout = (done) => queueMicrotask(done);

  // A comment makes it another module.
  await import(`data:text/javascript,${encodeURIComponent(`${script}\n// ${(visits += 1)}`)}`);
  globalThis.setTimeout = realTimer;
  return { before, after: visible(), requests, limit: limit.textContent };
};

test("it says Pro only once the service does, and asks again by itself", async () => {
  const later = [new Error("offline"), refused(503), refused(429), session("free"), session("pro")];
  const { before, after, requests, limit } = await visit(...later);
  assert.deepEqual([before, after], [["waiting"], ["pro"]]);
  assert.deepEqual(requests, Array(5).fill("POST /api/billing/refresh"));
  assert.equal(limit, 100);
});

test("it stops after some minutes, or without a session", async () => {
  const late = await visit(session("free"));
  assert.deepEqual(late.after, ["late"]);
  assert.ok(late.requests.length >= 5 && late.requests.length <= 10);
  assert.deepEqual((await visit(refused(401))).after, ["signed-out"]);
});

test("it has no script of its own in the markup", () => {
  assert.doesNotMatch(html, / on[a-z]+=/);
  assert.doesNotMatch(html, /<script(?![^>]* src=)/);
});
