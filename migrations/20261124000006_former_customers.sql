-- The last customer of a user that was deleted at Stripe. The next one is made under a key that names it: under the first
-- one's key Stripe answers with the deleted one for a day.
alter table users add column former_stripe_customer_id text;
