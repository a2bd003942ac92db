//! pinhole, user side.
