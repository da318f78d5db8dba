//! `iconoclash budgets`: the spending limits, shown and set in dollars.

use std::fmt;

use iconoclash::{
    app::App,
    http::error::Error,
    spending::{
        budgets::{self, Budgets, Propagation, SCOPES},
        ledger,
    },
};

/// Micro-dollars that people read and type as dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dollars(pub i64);

impl std::str::FromStr for Dollars {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let unreadable = || format!("{typed:?} is no amount: give dollars, such as 0.05 or 1500");
        let (whole, cents) = typed
            .trim()
            .trim_start_matches('$')
            .split_once('.')
            .unwrap_or((typed.trim().trim_start_matches('$'), ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(cents) || cents.len() > 6 {
            return Err(unreadable());
        }
        let micros = format!("{whole}{cents:0<6}")
            .parse()
            .map_err(|_| unreadable())?;
        Ok(Self(micros))
    }
}

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, micros) = (
            self.0.unsigned_abs() / 1_000_000,
            self.0.unsigned_abs() % 1_000_000,
        );
        let micros = format!("{micros:06}");
        // Cents always, and what is less than a cent only where there is any.
        let digits = 2.max(micros.trim_end_matches('0').len());
        write!(f, "{sign}${whole}.{}", &micros[..digits])
    }
}

/// The limits as lines, with what is spent of those that everybody shares.
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
    let line = |scope: &str, limit: i64, of: &str| {
        format!("{scope:<6} {:>12} {of}", Dollars(limit).to_string())
    };
    let used = |spent: i64, when: &str| format!("by everybody {when}; {} spent", Dollars(spent));
    Ok(vec![
        line("guest", guest, "by a network a day"),
        line("free", free, "by a free user a day"),
        line("pro", pro, "by a paying user a day"),
        line("day", day, &used(spent.today, "a day")),
        line("month", month, &used(spent.month, "a month")),
    ])
}

/// Sets one limit and says when it holds.
pub async fn set(app: &App, scope: &str, limit: Dollars) -> Result<String, String> {
    let followed = budgets::set(app, scope, limit.0).await.map_err(explain)?;
    Ok(match followed {
        Propagation::Immediate => format!("{scope} is {limit} from the next message on"),
        Propagation::OnCacheExpiry(cause) => {
            format!(
                "{scope} is {limit} within a minute; Redis could not be told to forget the old limit now: {cause}"
            )
        }
    })
}

fn explain(error: Error) -> String {
    match error {
        Error::Unavailable { cause, .. } => {
            format!("{cause}: check DATABASE_URL, and whether `iconoclash migrate` has run")
        }
        Error::Internal(cause) => format!("{cause}: has `iconoclash migrate` of this release run?"),
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
            assert_eq!(
                (read.0, read.to_string().as_str()),
                (micros, shown),
                "{typed}"
            );
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
