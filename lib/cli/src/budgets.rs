//! `iconoclash budgets`: shows and sets the spending limits in dollars.

use std::fmt;

use iconoclash::{
    app::App,
    http::error::Error,
    spending::{
        budgets::{self, Budgets, Propagation, SCOPES},
        ledger,
    },
};

/// An amount in micro-dollars, which people read and type in dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dollars(pub i64);

impl std::str::FromStr for Dollars {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let malformed = || format!("{typed:?} is no amount: give dollars, such as 0.05 or 1500");
        let number = typed.trim().trim_start_matches('$');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));

        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || fraction.len() > 6 {
            return Err(malformed());
        }

        let micros = format!("{whole}{fraction:0<6}");
        micros.parse().map(Self).map_err(|_| malformed())
    }
}

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let whole = self.0.unsigned_abs() / 1_000_000;
        let fraction = format!("{:06}", self.0.unsigned_abs() % 1_000_000);

        // Always two digits, and more only where they are not zero.
        let digits = 2.max(fraction.trim_end_matches('0').len());
        write!(f, "{sign}${whole}.{}", &fraction[..digits])
    }
}

/// The limits as lines, with the spending so far of those that all users share.
pub async fn show(app: &App) -> Result<Vec<String>, String> {
    let limits = budgets::read(app).await.map_err(explain)?;
    let spent = ledger::spending(app).await.map_err(explain)?;
    let Budgets {
        guest,
        free,
        pro,
        day,
        month,
    } = limits;

    let line = |scope: &str, limit: i64, applies_to: &str| {
        let limit = Dollars(limit).to_string();
        format!("{scope:<6} {limit:>12} {applies_to}")
    };
    let today = format!("a day for all users; {} spent", Dollars(spent.today));
    let this_month = format!("a month for all users; {} spent", Dollars(spent.month));
    Ok(vec![
        line("guest", guest, "a day for the guests of a network"),
        line("free", free, "a day for a free user"),
        line("pro", pro, "a day for a paying user"),
        line("day", day, &today),
        line("month", month, &this_month),
    ])
}

/// Sets one limit and says from when on it applies.
pub async fn set(app: &App, scope: &str, limit: Dollars) -> Result<String, String> {
    let followed = budgets::set(app, scope, limit.0).await.map_err(explain)?;
    Ok(match followed {
        Propagation::Immediate => format!("{scope} is {limit} from the next message on"),
        Propagation::OnCacheExpiry(cause) => {
            format!(
                "{scope} is {limit} within a minute. Redis still has the old limit until then: \
                 {cause}"
            )
        }
    })
}

fn explain(error: Error) -> String {
    match error {
        Error::Unavailable { cause, .. } => {
            format!("{cause}: check DATABASE_URL, and run `iconoclash migrate`")
        }
        Error::Internal(cause) => format!("{cause}: run `iconoclash migrate` of this release"),
        Error::Invalid { .. } => {
            format!("there is no such scope: give one of {}", SCOPES.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_read_and_written_to_the_last_micro_dollar() {
        for (typed, micros, shown) in [
            ("0.05", 50_000, "$0.05"),
            ("$1500", 1_500_000_000, "$1500.00"),
            ("0.000001", 1, "$0.000001"),
            ("12.5", 12_500_000, "$12.50"),
            ("0", 0, "$0.00"),
        ] {
            let read: Dollars = typed.parse().unwrap();
            assert_eq!(read.0, micros, "{typed}");
            assert_eq!(read.to_string(), shown, "{typed}");
        }

        for typed in [
            "",
            "-1",
            "1.0000001",
            "ten",
            "1e3",
            "1,50",
            ".",
            "99999999999999999999",
        ] {
            assert!(typed.parse::<Dollars>().is_err(), "{typed}");
        }
    }
}
