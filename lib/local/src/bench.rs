//! `cargo local bench`: what things cost, printed as numbers and ratios of one run. Nothing here passes or fails.

pub mod admission;
