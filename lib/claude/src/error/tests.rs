use super::response::{MAX_RETRY_AFTER, classify, retry_after};
use super::*;
use http::{HeaderValue, StatusCode};

fn secret() -> SecretString {
    SecretString::from("sk-1")
}

#[test]
fn retry_after_is_read_in_every_form_that_the_provider_uses() {
    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], expected: Option<Duration>) {
        let map = headers.iter().map(|&(name, value)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        assert_eq!(retry_after(&map.collect()), expected);
    }
    let secs = |secs| Some(Duration::from_secs(secs));
    check(&[], None);
    check(&[("retry-after", "7")], secs(7));
    check(
        &[("retry-after", " 0.5 ")],
        Some(Duration::from_millis(500)),
    );
    check(
        &[("retry-after-ms", "1500"), ("retry-after", "7")],
        Some(Duration::from_millis(1500)),
    );
    check(&[("retry-after-ms", "soon"), ("retry-after", "7")], secs(7));
    let date = ("date", "Tue, 24 Nov 2026 08:00:00 GMT");
    check(
        &[("retry-after", "Tue, 24 Nov 2026 08:00:30 GMT"), date],
        secs(30),
    );
    check(
        &[("retry-after", "Tue, 24 Nov 2026 07:00:00 GMT"), date],
        secs(0),
    );
    check(&[("retry-after", "Tue, 24 Nov 2026 08:00:30 GMT")], None);
    check(&[("retry-after", "soon")], None);
    check(&[("retry-after", "-3")], secs(0));
    check(&[("retry-after", "NaN")], None);
    check(&[("retry-after", "1e30")], Some(MAX_RETRY_AFTER));
    check(&[("retry-after", "inf")], Some(MAX_RETRY_AFTER));
}

#[test]
fn the_kind_of_an_error_follows_type_and_code_and_then_status() {
    #[track_caller]
    fn check(status: u16, body: &str, expected: &str) {
        let status = StatusCode::from_u16(status).unwrap();
        let error = classify(status, Detail::parse(body, Some("req_1"), &secret()), None);
        let printed = format!("{error:?}");
        let kind = printed.split([' ', '(']).next().unwrap();
        assert_eq!(kind, expected, "{status} {body}");
    }
    let body = |kind: &str, code: &str, message: &str| {
        let details = if code.is_empty() {
            "null".into()
        } else {
            format!(r#"{{"error_code":"{code}"}}"#)
        };
        format!(
            r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}","details":{details}}}}}"#
        )
    };
    let limit =
        "You have reached your specified API usage limits. You will regain access on 2026-12-01.";
    check(429, &body("rate_limit_error", "", ""), "RateLimited");
    check(
        429,
        &body("rate_limit_error", "ramp_limit_exceeded", ""),
        "RateLimited",
    );
    check(
        429,
        &body("rate_limit_error", "enforced_spend_limit_reached", ""),
        "SpendLimit",
    );
    check(
        429,
        &body("rate_limit_error", "contract_spend_limit_reached", ""),
        "SpendLimit",
    );
    check(400, &body("invalid_request_error", "", limit), "Invalid");
    check(
        400,
        &body("invalid_request_error", "spend_limit_reached", ""),
        "SpendLimit",
    );
    check(
        400,
        &body("invalid_request_error", "organization_on_hold", ""),
        "Auth",
    );
    check(
        400,
        &body("invalid_request_error", "", "messages: Field required"),
        "Invalid",
    );
    check(
        401,
        &body("authentication_error", "", "invalid x-api-key"),
        "Auth",
    );
    check(402, &body("billing_error", "", ""), "Auth");
    check(403, &body("permission_error", "", ""), "Auth");
    check(
        404,
        &body("not_found_error", "", "model: claude-1"),
        "Invalid",
    );
    check(409, &body("conflict_error", "", ""), "Provider");
    check(413, &body("request_too_large", "", ""), "Invalid");
    check(500, &body("api_error", "", ""), "Provider");
    check(504, &body("timeout_error", "", ""), "Provider");
    check(529, &body("overloaded_error", "", ""), "Overloaded");
    check(503, &body("overloaded_error", "", ""), "Overloaded");
    check(418, &body("teapot_error", "", ""), "Invalid");
    check(502, "<html>Bad gateway</html>", "Provider");
    check(429, "", "RateLimited");
    check(529, "", "Overloaded");
    check(403, "<html>Forbidden</html>", "Auth");
    check(302, "", "Provider");
}

#[test]
fn a_logged_error_names_the_request_and_hides_the_key() {
    let body = r#"{"type":"error","error":{"type":"authentication_error","message":"bad sk-1"},"request_id":"req_2"}"#;
    let error = classify(
        StatusCode::UNAUTHORIZED,
        Detail::parse(body, None, &secret()),
        None,
    );
    assert_eq!(
        error.to_string(),
        r#"key refused: 401 authentication_error "bad [key]" (request-id req_2)"#
    );
    let html = Detail::parse(&"x".repeat(10_000), Some("req_3"), &SecretString::default());
    assert_eq!(html.message.len(), MAX_MESSAGE_CHARS);
}

#[test]
fn the_class_of_an_error_follows_type_code_and_status() {
    #[track_caller]
    fn check(status: u16, kind: &str, code: Option<&str>, expected: Class) {
        let detail = Detail {
            error_type: kind.to_owned(),
            error_code: code.map(str::to_owned),
            message: "You have reached your specified API usage limits.".to_owned(),
            ..Detail::default()
        };
        let error = classify(StatusCode::from_u16(status).unwrap(), detail, None);
        assert_eq!(error.class(), expected, "{status} {kind} {code:?}");
    }
    check(429, "rate_limit_error", None, Class::Limited);
    check(
        429,
        "rate_limit_error",
        Some("ramp_limit_exceeded"),
        Class::Limited,
    );
    check(
        429,
        "rate_limit_error",
        Some("enforced_spend_limit_reached"),
        Class::Spent,
    );
    check(
        429,
        "rate_limit_error",
        Some("contract_spend_limit_reached"),
        Class::Spent,
    );
    check(400, "invalid_request_error", None, Class::Ambiguous);
    check(400, "invalid_request_error", Some("anything"), Class::Final);
    check(401, "authentication_error", None, Class::Refused);
    check(402, "billing_error", None, Class::Refused);
    check(403, "permission_error", None, Class::Refused);
    check(404, "not_found_error", None, Class::NoModel);
    check(409, "conflict_error", None, Class::Failing);
    check(413, "request_too_large", None, Class::Final);
    check(500, "api_error", None, Class::Failing);
    check(504, "timeout_error", None, Class::Failing);
    check(529, "overloaded_error", None, Class::Overloaded);
    let in_stream = |kind: &str| {
        Error::InStream(Box::new(Detail {
            error_type: kind.to_owned(),
            ..Detail::default()
        }))
    };
    assert_eq!(in_stream("overloaded_error").class(), Class::Overloaded);
    assert_eq!(in_stream("rate_limit_error").class(), Class::Limited);
    assert_eq!(in_stream("api_error").class(), Class::Failing);
}
