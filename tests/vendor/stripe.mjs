// The vendor's official client against STRIPE_BASE_URL: the fake has the real wire format. Events that the client signs
// against WEBHOOK_URL: the application accepts Stripe's signatures and no others.
// `cargo local test the_official_client_works_with_the_fake_stripe` starts both and runs this file.

import assert from "node:assert/strict";
import { test } from "node:test";
import Stripe from "stripe";

const { STRIPE_BASE_URL, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, STRIPE_PRICE_PRO, WEBHOOK_URL } = process.env;
assert.ok(STRIPE_BASE_URL && WEBHOOK_URL, "STRIPE_BASE_URL and WEBHOOK_URL must name a fake and the webhook");

const { hostname, port } = new URL(STRIPE_BASE_URL);
const options = { host: hostname, port, protocol: "http", maxNetworkRetries: 0, telemetry: false, timeout: 10_000 };
const stripe = new Stripe(STRIPE_SECRET_KEY, options);

const act = async (action, target) => {
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ action, target });
  const answer = await fetch(`${STRIPE_BASE_URL}/local/stripe/act`, { method: "POST", headers, body });
  assert.equal(answer.status, 200);
};

const open = async (more = {}) => {
  const customer = await stripe.customers.create({ email: "ada@example.org", metadata: { user_id: "u1" } });
  const session = await stripe.checkout.sessions.create({
    mode: "subscription",
    customer: customer.id,
    client_reference_id: "u1",
    line_items: [{ price: STRIPE_PRICE_PRO, quantity: 1 }],
    allow_promotion_codes: true,
    subscription_data: { metadata: { user_id: "u1" } },
    success_url: "http://localhost/success?session_id={CHECKOUT_SESSION_ID}",
    cancel_url: "http://localhost/cancel",
    ...more,
  });
  return { customer, session };
};

const subscribe = async () => {
  const { customer, session } = await open();
  await act("pay", session.id);
  const { data } = await stripe.subscriptions.list({ customer: customer.id, status: "all" });
  assert.equal(data.length, 1);
  return { customer, session, subscription: data[0] };
};

test("a checkout is opened, is paid and redirects to the success page", async () => {
  const { customer, session } = await open();
  assert.match(customer.id, /^cus_/);
  assert.match(session.id, /^cs_test_/);
  assert.equal(session.status, "open");
  assert.equal(session.ui_mode, "hosted_page");
  const page = await (await fetch(session.url)).text();
  assert.match(page, /Subscribe for \$12\.00 a month/);

  const paid = await fetch(`${session.url}/pay`, { method: "POST", redirect: "manual" });
  assert.equal(paid.status, 303);
  assert.equal(paid.headers.get("location"), `http://localhost/success?session_id=${session.id}`);
  const after = await stripe.checkout.sessions.retrieve(session.id);
  assert.equal(after.status, "complete");
  assert.equal(after.payment_status, "paid");
  assert.equal(after.url, null);
  const subscription = await stripe.subscriptions.retrieve(after.subscription);
  assert.equal(subscription.metadata.user_id, "u1");
  const open_ones = await stripe.checkout.sessions.list({ customer: customer.id, status: "open" });
  assert.deepEqual(open_ones.data, []);
});

test("a period belongs to a subscription's item", async () => {
  const { subscription } = await subscribe();
  assert.equal(subscription.status, "active");
  assert.equal(subscription.current_period_end, undefined);
  const [item] = subscription.items.data;
  assert.ok(item.current_period_end > item.current_period_start);
  assert.equal(item.price.id, STRIPE_PRICE_PRO);
});

test("a subscription is cancelled at its period's end, resumed, and cancelled at once", async () => {
  const { subscription } = await subscribe();
  const ending = await stripe.subscriptions.update(subscription.id, { cancel_at_period_end: true });
  assert.equal(ending.cancel_at_period_end, true);
  const kept = await stripe.subscriptions.update(subscription.id, { cancel_at_period_end: false });
  assert.equal(kept.cancel_at_period_end, false);
  const ended = await stripe.subscriptions.cancel(subscription.id);
  assert.equal(ended.status, "canceled");
  assert.ok(ended.ended_at);
});

test("lists have pages", async () => {
  const { customer } = await subscribe();
  for (let more = 0; more < 4; more += 1) await act("subscribe", customer.id);
  const ids = [];
  for await (const subscription of stripe.subscriptions.list({ customer: customer.id, status: "all", limit: 2 })) {
    ids.push(subscription.id);
  }
  assert.equal(new Set(ids).size, 5);
  assert.equal(ids.length, 5);
});

test("a deleted customer can be asked about, but buys nothing", async () => {
  const { customer, session, subscription } = await subscribe();
  await act("delete", customer.id);
  const { id, object, deleted } = await stripe.customers.retrieve(customer.id);
  assert.deepEqual({ id, object, deleted }, { id: customer.id, object: "customer", deleted: true });
  const ended = await stripe.subscriptions.list({ customer: customer.id, status: "canceled" });
  assert.deepEqual(ended.data.map(({ id, status }) => [id, status]), [[subscription.id, "canceled"]]);

  const refused = { code: "resource_missing", param: "customer", statusCode: 400 };
  const { mode, success_url } = session;
  const line_items = [{ price: STRIPE_PRICE_PRO, quantity: 1 }];
  const checkout = stripe.checkout.sessions.create({ mode, customer: customer.id, line_items, success_url });
  await assert.rejects(checkout, refused);
  const portal = stripe.billingPortal.sessions.create({ customer: customer.id, return_url: "http://localhost/" });
  await assert.rejects(portal, refused);
  await assert.rejects(stripe.customers.retrieve("cus_missing"), { code: "resource_missing", statusCode: 404 });
});

test("the portal shows the subscription", async () => {
  const { customer } = await subscribe();
  const portal = await stripe.billingPortal.sessions.create({ customer: customer.id, return_url: "http://localhost/" });
  assert.match(portal.id, /^bps_/);
  assert.match(await (await fetch(portal.url)).text(), /Cancel at the period’s end/);
});

test("an idempotency key replays the first answer to the same request only", async () => {
  const idempotencyKey = "once";
  const [first, second] = await Promise.all([
    stripe.customers.create({ email: "a@example.org" }, { idempotencyKey }),
    stripe.customers.create({ email: "a@example.org" }, { idempotencyKey }),
  ]);
  assert.equal(first.id, second.id);
  const other = stripe.customers.create({ email: "b@example.org" }, { idempotencyKey });
  await assert.rejects(other, Stripe.errors.StripeIdempotencyError);
});

test("parameters and objects that the version does not know are errors", async () => {
  const removed = open({ payment_method_types: ["card"] });
  await assert.rejects(removed, { code: "parameter_unknown", param: "payment_method_types", statusCode: 400 });
  await assert.rejects(open({ line_items: [{ price: "price_other", quantity: 1 }] }), { code: "resource_missing" });
  const missing = stripe.subscriptions.list({ customer: "cus_missing" });
  await assert.rejects(missing, { code: "resource_missing", param: "customer" });
  await assert.rejects(stripe.subscriptions.retrieve("sub_missing"), { statusCode: 404 });
  const old = new Stripe(STRIPE_SECRET_KEY, { ...options, apiVersion: "2024-06-20" });
  await assert.rejects(old.customers.create(), Stripe.errors.StripeInvalidRequestError);
  const stranger = new Stripe("sk_test_other", options);
  await assert.rejects(stranger.customers.create(), Stripe.errors.StripeAuthenticationError);
});

const post = async (payload, signature) => {
  const headers = { "content-type": "application/json", ...(signature && { "stripe-signature": signature }) };
  const answer = await fetch(WEBHOOK_URL, { method: "POST", headers, body: payload });
  return [answer.status, await answer.json()];
};

const sign = (payload, more = {}) =>
  stripe.webhooks.generateTestHeaderString({ payload, secret: STRIPE_WEBHOOK_SECRET, ...more });

test("only an event that Stripe's library signed correctly is accepted", async () => {
  const payload = JSON.stringify({ id: "evt_1", object: "event", type: "payout.paid", data: { object: {} } }, null, 2);
  assert.deepEqual(await post(payload, sign(payload)), [200, { outcome: "ignored" }]);
  const now = Math.floor(Date.now() / 1000);
  const refused = [
    undefined,
    sign(payload, { secret: "whsec_other" }),
    sign(payload, { scheme: "v0" }),
    sign(payload, { timestamp: now - 400 }),
    sign(payload, { timestamp: now + 400 }),
    sign(`${payload} `),
  ];
  for (const signature of refused) {
    const [status, problem] = await post(payload, signature);
    assert.equal(status, 400, signature);
    assert.equal(problem.code, "bad_request");
  }
});

test("Stripe's library accepts the events of the fake", async () => {
  await subscribe();
  const seen = await (await fetch(process.env.EVENTS_URL)).json();
  assert.ok(seen.length >= 3);
  for (const { payload, signature } of seen) {
    const event = stripe.webhooks.constructEvent(payload, signature, STRIPE_WEBHOOK_SECRET);
    assert.equal(event.api_version, stripe.getApiField("version"));
  }
});
