-- The list of discussions by their last change. Built in the transaction of the migration: a run that waits for the
-- lock of another would keep `create index concurrently` waiting for ever. Writes wait while it builds.
create index discussions_user_id_archived_updated_at_id_idx
  on discussions (user_id, archived, updated_at desc, id desc);
