-- Claude API keys that operators add without a deployment. The secret is sealed under CREDENTIALS_KEY, bound to the row's
-- id and label: a row copied under another label does not open.
create table claude_keys (
  id uuid not null constraint claude_keys_pkey primary key,
  -- What logs and the ledger call it.
  label text not null constraint claude_keys_label_shape check (label ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$'),
  -- The provider limits organisations, not keys. Null: no other key shares its organisation.
  organisation text
    constraint claude_keys_organisation_shape check (organisation ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$'),
  weight integer not null constraint claude_keys_weight_range check (weight between 1 and 100),
  -- A draining key gets no new call; a revoked one, besides, can never be used again.
  state text not null constraint claude_keys_state_known check (state in ('active', 'draining', 'revoked')),
  -- Erased when the key is revoked.
  sealed bytea,
  -- The last characters of the secret, by which an operator finds it in the provider's console.
  hint text not null,
  last_ok_at timestamptz,
  last_error text,
  last_error_at timestamptz,
  created_at timestamptz not null,
  updated_at timestamptz not null,
  constraint claude_keys_revoked_is_erased check ((state = 'revoked') = (sealed is null))
);
create unique index claude_keys_label_key on claude_keys (label) where state <> 'revoked';

-- Why Claude ended a reply, in its own words, such as end_turn, max_tokens or refusal.
alter table messages add column stop_reason text;
