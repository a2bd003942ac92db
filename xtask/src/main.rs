//! Tasks of the pinhole repository.
fn main() {}
