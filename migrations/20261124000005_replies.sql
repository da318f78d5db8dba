-- Stopping a reply, what the ledger says of its prices, and the small calls that name and sum up a conversation.

-- Set by whoever wants a running reply to stop; its producer, which is another process, looks at it each second.
alter table messages add column stop_requested_at timestamptz;

alter table usage_events
  -- A reply, or a call that nobody asked for: those never count as a message.
  add column kind text not null default 'reply'
    constraint usage_events_kind_known check (kind in ('reply', 'title', 'summary')),
  -- The first day of the price that the cost was made with.
  add column price_date date,
  -- What the prompt cache saved; less than zero where it was written and not read.
  add column saved_microusd bigint not null default 0;

alter table discussions
  -- The title was made from the topic or the icons: a better one may take its place.
  add column title_made boolean not null default false,
  -- What was said up to and with a message, for prompts that would be too long.
  add column summary text,
  add column summary_until uuid,
  add constraint discussions_summary_has_reach check ((summary is null) = (summary_until is null));
