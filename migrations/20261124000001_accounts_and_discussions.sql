-- Ids are UUIDv7, made by the application: they sort by time, so the primary key is also the keyset of every list.
-- Enumerations are checked text: adding a value is one ALTER, and no driver has to look a type up.

create table users (
  id uuid not null constraint users_pkey primary key,
  -- Guests have neither e-mail nor password; the address is kept as typed and compared in lower case.
  email text constraint users_email_length check (length(email) between 3 and 254),
  name text constraint users_name_length check (length(name) between 1 and 80),
  password_hash text,
  plan text not null constraint users_plan_known check (plan in ('guest', 'free', 'pro')),
  role text not null default 'user' constraint users_role_known check (role in ('user', 'admin')),
  stripe_customer_id text,
  -- Part of every token: raising it ends all of a user's sessions at once.
  token_version integer not null default 1,
  suspended_at timestamptz,
  created_at timestamptz not null,
  constraint users_guest_or_credentials
    check ((plan = 'guest') = (email is null) and (email is null) = (password_hash is null))
);
create unique index users_email_key on users (lower(email));
create unique index users_stripe_customer_id_key on users (stripe_customer_id);

-- A signed-out session stays here until its token would have expired anyway.
create table revoked_sessions (
  sid uuid not null constraint revoked_sessions_pkey primary key,
  user_id uuid not null constraint revoked_sessions_user_id_fkey references users on delete cascade,
  expires_at timestamptz not null
);
create index revoked_sessions_user_id_idx on revoked_sessions (user_id);
create index revoked_sessions_expires_at_idx on revoked_sessions (expires_at);

create table icons (
  slug text not null constraint icons_pkey primary key
    constraint icons_slug_shape check (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' and length(slug) <= 60),
  name text not null,
  era text not null,
  tagline text not null,
  system_prompt text not null,
  position smallint not null,
  -- A retired icon is not offered any more; the discussions that have it go on.
  retired boolean not null default false
);

create table discussions (
  id uuid not null constraint discussions_pkey primary key,
  user_id uuid not null constraint discussions_user_id_fkey references users on delete cascade,
  title text not null constraint discussions_title_length check (length(title) between 1 and 200),
  topic text constraint discussions_topic_length check (length(topic) between 1 and 2000),
  icons text[] not null constraint discussions_icons_count check (cardinality(icons) between 1 and 4),
  archived boolean not null default false,
  -- The slug outlives an unsharing, so that sharing again gives the same address.
  shared boolean not null default false,
  share_slug text constraint discussions_share_slug_key unique,
  message_count integer not null default 0,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint discussions_shared_has_slug check (not shared or share_slug is not null)
);
create index discussions_user_id_archived_id_idx on discussions (user_id, archived, id desc);
create index discussions_user_id_created_at_idx on discussions (user_id, created_at);

create table messages (
  id uuid not null constraint messages_pkey primary key,
  discussion_id uuid not null constraint messages_discussion_id_fkey references discussions on delete cascade,
  role text not null constraint messages_role_known check (role in ('user', 'assistant')),
  status text not null constraint messages_status_known
    check (status in ('complete', 'streaming', 'partial', 'stopped', 'failed')),
  content text not null,
  -- What only a reply has.
  reply_to uuid constraint messages_reply_to_fkey references messages on delete cascade,
  model text,
  input_tokens bigint,
  cache_write_tokens bigint,
  cache_read_tokens bigint,
  output_tokens bigint,
  cost_microusd bigint,
  -- While a reply streams its producer renews this; one that ran out belongs to a process that died.
  lease_expires_at timestamptz,
  created_at timestamptz not null,
  constraint messages_reply_has_origin check ((role = 'assistant') = (reply_to is not null)),
  constraint messages_streaming_has_lease check ((status = 'streaming') = (lease_expires_at is not null))
);
create index messages_discussion_id_id_idx on messages (discussion_id, id desc);
create index messages_reply_to_idx on messages (reply_to);
create unique index messages_one_streaming_reply_key on messages (discussion_id) where status = 'streaming';
create index messages_lease_expires_at_idx on messages (lease_expires_at) where status = 'streaming';

-- The ledger: one row for each call to Claude, whatever came of it. It outlives the account that caused it. The row is
-- written before the first word of the reply, with the most that the call can cost; its end brings the true numbers.
create table usage_events (
  request_id uuid not null constraint usage_events_pkey primary key,
  user_id uuid constraint usage_events_user_id_fkey references users on delete set null,
  message_id uuid not null,
  -- Who the message counts for: the user, or a keyed hash of a guest's network.
  subject text not null,
  plan text not null constraint usage_events_plan_known check (plan in ('guest', 'free', 'pro')),
  model text not null,
  key_label text not null,
  outcome text not null constraint usage_events_outcome_known
    check (outcome in ('running', 'complete', 'partial', 'stopped', 'failed')),
  -- False where the message was given back to the day's quota.
  counted boolean not null default true,
  -- True until the provider's numbers are here.
  estimated boolean not null default true,
  input_tokens bigint not null default 0,
  cache_write_5m_tokens bigint not null default 0,
  cache_write_1h_tokens bigint not null default 0,
  cache_read_tokens bigint not null default 0,
  output_tokens bigint not null default 0,
  cost_microusd bigint not null constraint usage_events_cost_not_negative check (cost_microusd >= 0),
  created_at timestamptz not null,
  ended_at timestamptz,
  constraint usage_events_running_has_no_end check ((outcome = 'running') = (ended_at is null))
);
create index usage_events_message_id_idx on usage_events (message_id);
create index usage_events_user_id_created_at_idx on usage_events (user_id, created_at);
create index usage_events_subject_created_at_idx on usage_events (subject, created_at);
create index usage_events_created_at_idx on usage_events (created_at);

create table idempotency_keys (
  user_id uuid not null constraint idempotency_keys_user_id_fkey references users on delete cascade,
  key text not null constraint idempotency_keys_key_length check (length(key) between 1 and 255),
  -- Method, path and body of the first request.
  request_hash bytea not null,
  -- The first answer, or the reply that tells it: whether that still runs, and what it became.
  response jsonb,
  reply_id uuid constraint idempotency_keys_reply_id_fkey references messages on delete cascade,
  created_at timestamptz not null,
  constraint idempotency_keys_pkey primary key (user_id, key),
  constraint idempotency_keys_answer check ((response is null) <> (reply_id is null))
);
create index idempotency_keys_reply_id_idx on idempotency_keys (reply_id);
create index idempotency_keys_created_at_idx on idempotency_keys (created_at);
