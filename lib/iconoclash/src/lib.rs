//! The library behind every Iconoclash endpoint.
