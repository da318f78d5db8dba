//! What Claude is asked and how its answer is read: pure functions without a database.

pub mod history;
pub mod prompt;
pub mod speakers;
pub mod summary;
pub mod title;
