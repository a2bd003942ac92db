//! What peers do and what attackers try, case by case, through the real programs:
//! a client and a server of which the test chooses every byte, and between them
//! one pinhole at the client's end and one at the server's.
//!
//! Every byte is delivered in every case ([`case::Case`] sends nothing without
//! receiving it at the other end), a port that must be open is used, one that must
//! be shut is tried, and what is refused is refused with the reason that
//! `ftp list` shows at both ends.

mod attacks;
mod case;
mod choices;
mod commands;
mod crowd;
mod encrypted;
mod forged;
mod life;
mod lines;
mod replies;
mod world;
