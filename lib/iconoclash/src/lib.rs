//! The library behind every Iconoclash endpoint.

pub mod db;
pub mod claude;
pub mod price;
