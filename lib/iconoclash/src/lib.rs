//! The library behind every Iconoclash endpoint.

pub mod db;
