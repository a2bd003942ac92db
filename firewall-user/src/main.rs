//! pinhole.
fn main() {}
