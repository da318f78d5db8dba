-- What is known of Stripe's side. Stripe is the truth: a row here is a copy of what Stripe last answered, and every event
-- only says that it is time to ask again.

create table stripe_customers (
  id text not null constraint stripe_customers_pkey primary key,
  user_id uuid not null constraint stripe_customers_user_id_fkey references users on delete cascade,
  -- Raised by every write of what Stripe answered. An answer is written only over the version that was read before Stripe
  -- was asked, so that of two answers the older one can never come out on top.
  version bigint not null default 0,
  -- When Stripe was last asked.
  confirmed_at timestamptz,
  -- When the last checkout was begun: its first event may be lost, and then nothing else would lead back to Stripe.
  checkout_at timestamptz,
  -- When Stripe is to be asked again, event or none.
  check_at timestamptz,
  created_at timestamptz not null,
  constraint stripe_customers_user_id_key unique (user_id)
);
create index stripe_customers_check_at_idx on stripe_customers (check_at) where check_at is not null;

create table subscriptions (
  id text not null constraint subscriptions_pkey primary key,
  customer_id text not null constraint subscriptions_customer_id_fkey references stripe_customers
    on delete cascade on update cascade,
  -- As Stripe names it, and unchecked: a status that Stripe invents must not stop the others from being stored.
  status text not null,
  price_id text,
  cancel_at_period_end boolean not null,
  current_period_end timestamptz,
  -- Stripe does not say since when a payment is due: this is when it was first seen to be.
  past_due_since timestamptz,
  created_at timestamptz not null,
  constraint subscriptions_past_due_has_begun check ((status = 'past_due') = (past_due_since is not null))
);
create index subscriptions_customer_id_idx on subscriptions (customer_id);

-- Events that have had their effect: Stripe sends each at least once.
create table stripe_events (
  id text not null constraint stripe_events_pkey primary key,
  type text not null,
  customer_id text,
  received_at timestamptz not null
);
create index stripe_events_received_at_idx on stripe_events (received_at);
