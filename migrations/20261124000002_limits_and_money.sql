-- What the ledger adds up to, kept in the same statements as the ledger itself, so that one statement can decide whether
-- a message may be sent: several processes that ask at once wait for each other at these rows.

-- Lets a value through up to a limit, and refuses the whole statement beyond it, in the name of a constraint, so that
-- the caller knows which of several limits it was. Inside `on conflict do update set` it is given the row's newest
-- version. No limit is null.
create function at_most(value bigint, most bigint, constraint_name text) returns bigint language plpgsql as $$
begin
  if value > most then
    raise exception using errcode = 'check_violation', constraint = constraint_name,
      message = format('%s is more than %s', value, most);
  end if;
  return value;
end
$$;

-- A subject's UTC day.
create table subject_days (
  subject text not null,
  day date not null,
  -- Ledger rows that count.
  messages bigint not null,
  -- Cost of all ledger rows, held or settled.
  spent_microusd bigint not null,
  -- When the burst allowance is whole again, in epoch milliseconds (GCRA's theoretical arrival time).
  burst_ms bigint not null,
  constraint subject_days_pkey primary key (subject, day)
);
create index subject_days_day_idx on subject_days (day);

-- Everybody's UTC day. One row takes every write of its day, which bounds a deployment to some hundreds of messages a
-- second.
create table budget_days (
  day date not null constraint budget_days_pkey primary key,
  spent_microusd bigint not null
);

-- Spending limits: of each user a day by plan, and of the whole service.
create table budgets (
  scope text not null constraint budgets_pkey primary key
    constraint budgets_scope_known check (scope in ('guest', 'free', 'pro', 'day', 'month')),
  limit_microusd bigint not null constraint budgets_limit_not_negative check (limit_microusd >= 0),
  updated_at timestamptz not null default now()
);
insert into budgets (scope, limit_microusd) values
  ('guest', 50000), ('free', 100000), ('pro', 3000000), ('day', 100000000), ('month', 1500000000);

-- Where the limits on sign-ins and the like are kept while Redis cannot be reached.
create table rate_limits (
  key text not null constraint rate_limits_pkey primary key,
  arrival_ms bigint not null
);
create index rate_limits_arrival_ms_idx on rate_limits (arrival_ms);

-- Cached values that a write made stale while Redis could not be told. Reconciling tells it.
create table stale_cache_keys (
  key text not null constraint stale_cache_keys_pkey primary key,
  since timestamptz not null
);

-- One row for each run of a cron that came to an end.
create table cron_runs (
  id uuid not null constraint cron_runs_pkey primary key,
  job text not null,
  started_at timestamptz not null,
  ended_at timestamptz not null,
  report jsonb not null
);
create index cron_runs_job_started_at_idx on cron_runs (job, started_at desc);

create index usage_events_running_idx on usage_events (created_at) where outcome = 'running';

insert into subject_days (subject, day, messages, spent_microusd, burst_ms)
select subject, (created_at at time zone 'UTC')::date, count(*) filter (where counted), sum(cost_microusd), 0
from usage_events group by 1, 2;
insert into budget_days (day, spent_microusd)
select (created_at at time zone 'UTC')::date, sum(cost_microusd) from usage_events group by 1;
