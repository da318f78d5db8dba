-- Tests of a key by operators are calls like any other, and are in the ledger.
alter table usage_events drop constraint usage_events_kind_known;
alter table usage_events add constraint usage_events_kind_known
  check (kind in ('reply', 'title', 'summary', 'key_test'));
