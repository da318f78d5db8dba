//! Rebuilds for a new file in migrations/, which the macro that embeds them does not notice.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
