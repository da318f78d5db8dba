//! Stripe's objects in the format of the pinned API version.

use serde_json::{Value, json};

use super::PRICE;

/// The price of a month of Pro, in cents.
pub(super) const MONTHLY_CENTS: i64 = 1_200;

pub(super) fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap_or_default()
}

pub(super) fn customer(id: &str, email: &str, metadata: Value, now: i64) -> Value {
    json!({
        "id": id, "object": "customer", "address": null, "balance": 0, "created": now,
        "currency": null, "default_source": null, "delinquent": false, "description": null,
        "email": email, "invoice_prefix": "LOCAL",
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": null, "footer": null,
            "rendering_options": null,
        },
        "livemode": false, "metadata": metadata, "name": null, "phone": null,
        "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null,
    })
}

/// What is left of a customer that was deleted.
pub(super) fn deleted_customer(id: &str) -> Value {
    json!({"id": id, "object": "customer", "deleted": true})
}

fn price() -> Value {
    json!({
        "id": PRICE, "object": "price", "active": true, "billing_scheme": "per_unit",
        "created": 1_790_000_000, "currency": "usd", "custom_unit_amount": null,
        "livemode": false, "lookup_key": null, "metadata": {}, "nickname": null,
        "product": "prod_local_pro",
        "recurring": {
            "interval": "month", "interval_count": 1, "meter": null, "trial_period_days": null,
            "usage_type": "licensed",
        },
        "tax_behavior": "unspecified", "tiers_mode": null, "transform_quantity": null,
        "type": "recurring", "unit_amount": MONTHLY_CENTS,
        "unit_amount_decimal": MONTHLY_CENTS.to_string(),
    })
}

/// An active subscription with one item, which has the period.
pub(super) fn subscription(
    id: &str,
    customer: &str,
    metadata: Value,
    now: i64,
    ends: i64,
) -> Value {
    let item = json!({
        "id": id.replace("sub_", "si_"), "object": "subscription_item",
        "billing_thresholds": null, "created": now, "current_period_end": ends,
        "current_period_start": now, "current_trial": null, "discounts": [], "metadata": {},
        "price": price(), "quantity": 1, "subscription": id, "tax_rates": [],
    });

    json!({
        "id": id, "object": "subscription", "application": null,
        "application_fee_percent": null,
        "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
        "billing_cycle_anchor": now, "billing_cycle_anchor_config": null,
        "billing_mode": {"flexible": null, "type": "flexible"}, "billing_schedules": [],
        "billing_thresholds": null, "cancel_at": null, "cancel_at_period_end": false,
        "canceled_at": null,
        "cancellation_details": {"comment": null, "feedback": null, "reason": null},
        "collection_method": "charge_automatically", "created": now, "currency": "usd",
        "customer": customer, "customer_account": null, "days_until_due": null,
        "default_payment_method": null, "default_source": null, "default_tax_rates": [],
        "description": null, "discounts": [], "ended_at": null,
        "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
        "items": list(&format!("/v1/subscription_items?subscription={id}"), vec![item], false),
        "latest_invoice": null, "livemode": false, "managed_payments": null,
        "metadata": metadata, "next_pending_invoice_item_invoice": null, "on_behalf_of": null,
        "pause_collection": null,
        "payment_settings": {
            "payment_method_options": null, "payment_method_types": null,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": null, "pending_setup_intent": null,
        "pending_update": null, "schedule": null, "start_date": now, "status": "active",
        "test_clock": null, "transfer_data": null, "trial_end": null,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": null,
    })
}

/// An invoice; `parent` names the subscription.
pub(super) fn invoice(id: &str, subscription: &Value, paid: bool, now: i64) -> Value {
    json!({
        "id": id, "object": "invoice", "amount_due": MONTHLY_CENTS,
        "amount_paid": if paid { MONTHLY_CENTS } else { 0 },
        "amount_remaining": if paid { 0 } else { MONTHLY_CENTS }, "attempt_count": 1,
        "attempted": true, "auto_advance": !paid, "billing_reason": "subscription_cycle",
        "collection_method": "charge_automatically", "created": now, "currency": "usd",
        "customer": subscription["customer"], "livemode": false, "metadata": {},
        "parent": {
            "quote_details": null, "type": "subscription_details",
            "subscription_details": {
                "metadata": subscription["metadata"], "subscription": subscription["id"],
            },
        },
        "status": if paid { "paid" } else { "open" }, "total": MONTHLY_CENTS,
    })
}

/// An unpaid checkout that expires after a day.
pub(super) fn session(id: &str, url: &str, params: &super::params::Params, now: i64) -> Value {
    let text = |name: &str| params.get(name).map_or(Value::Null, |value| json!(value));
    let allow_promotion_codes = params
        .get("allow_promotion_codes")
        .map(|value| value == "true");

    json!({
        "id": id, "object": "checkout.session", "adaptive_pricing": null,
        "after_expiration": null,
        "allow_promotion_codes": allow_promotion_codes,
        "allowed_payment_method_types": null, "amount_subtotal": MONTHLY_CENTS,
        "amount_total": MONTHLY_CENTS,
        "automatic_tax": {
            "enabled": false, "liability": null, "provider": null, "status": null,
        },
        "billing_address_collection": null, "cancel_url": text("cancel_url"),
        "client_reference_id": text("client_reference_id"), "client_secret": null,
        "collected_information": null, "consent": null, "consent_collection": null,
        "created": now, "currency": "usd", "currency_conversion": null, "custom_fields": [],
        "custom_text": {
            "after_submit": null, "shipping_address": null, "submit": null,
            "terms_of_service_acceptance": null,
        },
        "customer": text("customer"), "customer_account": null, "customer_creation": null,
        "customer_details": null, "customer_email": null, "discounts": [],
        "expires_at": now + 24 * 3600, "integration_identifier": null, "invoice": null,
        "invoice_creation": null, "livemode": false, "locale": null, "managed_payments": null,
        "metadata": params.metadata("metadata"), "mode": text("mode"), "origin_context": null,
        "payment_intent": null, "payment_link": null, "payment_method_collection": "always",
        "payment_method_configuration_details": null, "payment_method_options": null,
        "payment_method_types": ["card"], "payment_status": "unpaid", "permissions": null,
        "recovered_from": null, "saved_payment_method_options": null, "setup_intent": null,
        "shipping_address_collection": null, "shipping_cost": null, "shipping_options": [],
        "status": "open", "submit_type": null, "subscription": null,
        "success_url": text("success_url"),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page", "url": url, "wallet_options": null,
    })
}

pub(super) fn portal_session(
    id: &str,
    url: &str,
    customer: &str,
    return_url: Option<&str>,
    now: i64,
) -> Value {
    json!({
        "id": id, "object": "billing_portal.session", "configuration": "bpc_local",
        "created": now, "customer": customer, "customer_account": null, "flow": null,
        "livemode": false, "locale": null, "on_behalf_of": null, "return_url": return_url,
        "url": url,
    })
}

pub(super) fn charge(id: &str, customer: &str, refunded: bool, now: i64) -> Value {
    json!({
        "id": id, "object": "charge", "amount": MONTHLY_CENTS, "amount_captured": MONTHLY_CENTS,
        "amount_refunded": if refunded { MONTHLY_CENTS } else { 0 }, "captured": true,
        "created": now, "currency": "usd", "customer": customer, "disputed": false,
        "livemode": false, "metadata": {}, "paid": true, "refunded": refunded,
        "status": "succeeded",
    })
}

/// A dispute, which names its charge but no customer.
pub(super) fn dispute(id: &str, charge: &str, now: i64) -> Value {
    json!({
        "id": id, "object": "dispute", "amount": MONTHLY_CENTS, "charge": charge,
        "created": now, "currency": "usd", "is_charge_refundable": false, "livemode": false,
        "metadata": {}, "reason": "fraudulent", "status": "needs_response",
    })
}

pub(super) fn list(url: &str, data: Vec<Value>, has_more: bool) -> Value {
    json!({"object": "list", "url": url, "has_more": has_more, "data": data})
}

pub(super) fn event(id: &str, kind: &str, object: &Value, now: i64) -> Value {
    json!({
        "id": id, "object": "event", "api_version": super::API_VERSION, "created": now,
        "data": {"object": object}, "livemode": false, "pending_webhooks": 1,
        "request": {"id": null, "idempotency_key": null}, "type": kind,
    })
}
