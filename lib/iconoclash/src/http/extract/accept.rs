//! `Accept`: which of two media types a client prefers (RFC 9110, section 12.5.1).

use std::cmp::Ordering;

use http::{HeaderMap, header};

/// Whether the client prefers `media` to `default`, which it gets if it does not care.
///
/// Of two types with the same weight, the one that is named wins over the one that a wildcard covers, and `media` wins
/// if both are named: a client names it only where it can read it.
pub(crate) fn prefers(headers: &HeaderMap, media: &str, default: &str) -> bool {
    let ranges = ranges(headers);
    let offered = weight_of(media, &ranges);
    let other = weight_of(default, &ranges);

    match offered.weight.cmp(&other.weight) {
        Ordering::Greater => true,
        Ordering::Equal => offered.specificity == NAMED && offered.weight > 0,
        Ordering::Less => false,
    }
}

/// A range that names the type itself, not `text/*` or `*/*`.
const NAMED: u8 = 3;

/// How well a range fits a type, and its weight in thousandths.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    specificity: u8,
    weight: u16,
}

/// The media ranges of the request in lower case, with their weights.
fn ranges(headers: &HeaderMap) -> Vec<(String, u16)> {
    let values = headers.get_all(header::ACCEPT).iter();
    let ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));

    let ranges = ranges.map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let is_weight = name.trim().eq_ignore_ascii_case("q");
            is_weight.then(|| thousandths(value.trim()))
        });
        (media, weight.unwrap_or(1000))
    });
    ranges.collect()
}

/// `0.5` → 500. A weight that is none counts as none given, and one above 1 as 1.
fn thousandths(weight: &str) -> u16 {
    let is_number = weight.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    match weight.parse::<f32>() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1000"
        )]
        Ok(weight) if is_number => (weight.clamp(0.0, 1.0) * 1000.0).round() as u16,
        _ => 1000,
    }
}

/// The weight of a type by the most specific range that covers it.
fn weight_of(media: &str, ranges: &[(String, u16)]) -> Match {
    let kind = media.split('/').next().unwrap_or_default();

    let matches = ranges.iter().filter_map(|(range, weight)| {
        let specificity = match range.split_once('/')? {
            _ if range == media => NAMED,
            (group, "*") if group == kind => 2,
            ("*", "*") => 1,
            _ => return None,
        };
        Some(Match {
            specificity,
            weight: *weight,
        })
    });
    matches.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_decide_between_a_stream_and_json() {
        let streams = |accept: &[&'static str]| {
            let values = accept.iter().map(|value| {
                let value = http::HeaderValue::from_static(value);
                (header::ACCEPT, value)
            });
            prefers(&values.collect(), "text/event-stream", "application/json")
        };

        for stream in [
            &["text/event-stream"][..],
            &["Text/Event-Stream"],
            &["text/event-stream; charset=utf-8"],
            &["text/event-stream, application/json"],
            &["application/json, text/event-stream"],
            &["application/json", "text/event-stream"],
            &["text/event-stream, */*"],
            &["text/event-stream, */*;q=0.1"],
            &["text/event-stream;q=0.5, */*;q=0.1"],
            &["text/event-stream;q=0.5"],
            &["text/event-stream;q=0.001"],
            &["application/json;q=0.5, text/event-stream"],
            &["application/json;q=0, text/event-stream;q=0.1"],
            &["text/event-stream;charset=utf-8;q=0.7, application/json;q=0.6"],
            &["text/event-stream;q=nonsense"],
            &["text/*"],
        ] {
            assert!(streams(stream), "{stream:?}");
        }

        for json in [
            &[][..],
            &[""],
            &["*/*"],
            &["application/json"],
            &["application/json, text/plain, */*"],
            &["text/html, application/xhtml+xml, */*;q=0.8"],
            &["text/event-stream;q=0"],
            &["text/event-stream;q=0.0"],
            &["text/event-stream; q=0.000, */*"],
            &["text/event-stream;Q=0"],
            &["text/event-stream ; q = 0"],
            &["application/json, text/event-stream;q=0.5"],
            &["text/event-stream;q=0.5", "application/json"],
            &["text/event-stream;q=0.5, */*;q=0.8"],
            &["text/event-stream;q=0.5, application/*"],
            &["text/event-streams"],
            &["text/*;q=0.5, application/json"],
            &["text/*, application/json"],
        ] {
            assert!(!streams(json), "{json:?}");
        }
    }
}
