//! Words that several CPUs change at once.
//!
//! The BPF targets of rustc declare no compare-and-swap and no 32-bit atomics,
//! because the oldest BPF machines had none, so `core` leaves them out. The
//! instructions exist since kernel 5.12; here they are.

use core::arch::asm;

/// A shared, aligned word in a map value.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

impl<T: Copy> Shared<T> {
    /// Wraps a word.
    ///
    /// # Safety
    /// `word` must be aligned and valid for the whole run of the program, and
    /// changed through this type only (by user space: by single stores only).
    #[inline(always)]
    pub(crate) const unsafe fn new(word: *mut T) -> Self {
        Self(word)
    }

    /// One load, which the compiler neither repeats nor splits.
    #[inline(always)]
    pub(crate) fn load(self) -> T {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.read_volatile() }
    }

    /// One store.
    #[inline(always)]
    pub(crate) fn store(self, value: T) {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.write_volatile(value) }
    }
}

impl Shared<u64> {
    /// Replaces `old` by `new`; `Err` carries what stood there instead.
    #[inline(always)]
    pub(crate) fn swap(self, old: u64, new: u64) -> Result<(), u64> {
        let mut seen = old;
        // SAFETY: one atomic, fully ordered instruction on a word that `new` vouches for.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) self.0,
                new = in(reg) new,
                inout("r0") seen,
            );
        }
        if seen == old { Ok(()) } else { Err(seen) }
    }

    /// Adds atomically.
    #[inline(always)]
    pub(crate) fn add(self, by: u64) {
        // SAFETY: as in `swap`.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) += {by}",
                word = in(reg) self.0,
                by = in(reg) by,
            );
        }
    }
}

impl Shared<u32> {
    /// Adds atomically.
    #[inline(always)]
    pub(crate) fn add(self, by: u32) {
        // SAFETY: as in `Shared::<u64>::swap`.
        unsafe {
            asm!(
                "lock *(u32 *)({word} + 0) += {by}",
                word = in(reg) self.0,
                by = in(wreg) by,
            );
        }
    }
}
