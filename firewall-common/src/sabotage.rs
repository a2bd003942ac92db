//! Checks that a test build leaves out, so that `cargo xtask differential` can
//! show that it notices.
//!
//! The object that is shipped is built without any of these features
//! (`xtask/src/build.rs` turns one on only for the object that
//! `--sabotage` asks for), so every constant is `false` there and the compiler
//! removes what it guards.

/// Segments outside the window are accepted.
pub const WINDOW: bool = cfg!(feature = "sabotage-window");
/// A RST is accepted whatever its sequence number.
pub const RST: bool = cfg!(feature = "sabotage-rst");
/// Window scaling is not taken into account.
pub const SCALE: bool = cfg!(feature = "sabotage-scale");
/// A SYN on a closed tuple begins no new flow: it belongs to the old one.
pub const TUPLE_REUSE: bool = cfg!(feature = "sabotage-tuple-reuse");
