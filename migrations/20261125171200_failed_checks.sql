-- How often in a row Stripe refused to answer about this customer, as it does for one of another account. Each time the
-- next check comes later, and customers without a failure come first.
alter table stripe_customers add column failed_checks integer not null default 0;
