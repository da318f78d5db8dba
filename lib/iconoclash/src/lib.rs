//! The library behind every Iconoclash endpoint.

pub mod claude;
pub mod price;
