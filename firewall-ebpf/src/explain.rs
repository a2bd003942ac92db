//! Notes for `pinhole why`, which loads the object once more with maps of its own.
//!
//! The loader sets [`EXPLAIN_SWITCH`] before the programs are verified. While it
//! is 0 the verifier knows that the notes cannot be reached, and takes them out:
//! in what is attached they cost nothing.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use firewall_common::abi::Explain;

use crate::work::Work;

/// [`firewall_common::abi::EXPLAIN_SWITCH`].
#[unsafe(no_mangle)]
static PINHOLE_EXPLAIN: u8 = 0;

/// The last packet's notes. One element for all CPUs: whoever turns the notes on
/// runs one packet at a time.
#[btf_map]
static EXPLAIN: Array<Explain, 1> = Array::new();

/// Are notes wanted?
#[inline(always)]
fn on() -> bool {
    // Volatile, or the compiler would put in the value that stands above.
    // SAFETY: a byte of the object's constants.
    unsafe { (&raw const PINHOLE_EXPLAIN).read_volatile() != 0 }
}

/// Begins the notes of a packet.
#[inline(always)]
pub(crate) fn begin(work: &mut Work) {
    if on() {
        work.explain = Explain::NONE;
    }
}

/// Notes the rule that matched, by its slot.
#[inline(always)]
pub(crate) fn rule(work: &mut Work, slot: u32) {
    if on() {
        work.explain.rule = slot;
    }
}

/// Notes that a new flow would go to [`Work::to_zone`].
#[inline(always)]
pub(crate) fn destination(work: &mut Work) {
    if on() {
        work.explain.to_zone = work.to_zone;
    }
}

/// Notes which number did not fit which bound.
#[inline(always)]
pub(crate) fn bounds(work: &mut Work) {
    if on() {
        work.explain.value = work.stepped().value;
        work.explain.bound = work.stepped().bound;
    }
}

/// Hands the notes out, with the verdict.
#[inline(always)]
pub(crate) fn outcome(work: &mut Work, outcome: u32) {
    if !on() {
        return;
    }
    work.explain.outcome = outcome;
    work.explain.from_zone = work.from_zone;
    if let Some(out) = EXPLAIN.get_ptr_mut(0) {
        // SAFETY: an array element of this type; nobody else runs meanwhile.
        unsafe { out.write(work.explain) };
    }
}
