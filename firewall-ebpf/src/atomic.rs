//! Words that several CPUs change at once.
//!
//! The BPF targets of rustc declare no compare-and-swap and no 32-bit atomics,
//! because the oldest BPF machines had none, so `core` leaves them out. The
//! instructions exist since kernel 5.12; here they are.

use core::arch::asm;

use firewall_common::tcp::{Counter, Word};

/// A shared, aligned word in a map value.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// Wraps a word.
    ///
    /// # Safety
    /// `word` must be aligned and valid for the whole run of the program, and
    /// changed through this type only (by user space: by single stores only).
    #[inline(always)]
    pub(crate) const unsafe fn new(word: *mut T) -> Self {
        Self(word)
    }
}

impl Shared<u64> {
    #[inline(always)]
    pub(crate) fn load(self) -> u64 {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(self, value: u64) {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.write_volatile(value) }
    }

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
}

impl Shared<u32> {
    #[inline(always)]
    pub(crate) fn load(self) -> u32 {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(self, value: u32) {
        // SAFETY: by the contract of `new`.
        unsafe { self.0.write_volatile(value) }
    }

    #[inline(always)]
    pub(crate) fn swap(self, old: u32, new: u32) -> Result<(), u32> {
        let mut seen = old;
        // SAFETY: as for eight bytes.
        unsafe {
            asm!(
                "w0 = cmpxchg32_32({word} + 0, w0, {new})",
                word = in(reg) self.0,
                new = in(wreg) new,
                inout("w0") seen,
            );
        }
        if seen == old { Ok(()) } else { Err(seen) }
    }
}

macro_rules! counter {
    ($width:ty, $class:ident, $add:literal, $fetch_add:literal, $fetch_or:literal) => {
        impl Counter<$width> for Shared<$width> {
            #[inline(always)]
            fn add(self, by: $width) {
                // SAFETY: as in `Shared::<u64>::swap`.
                unsafe { asm!($add, word = in(reg) self.0, by = in($class) by) };
            }

            #[inline(always)]
            fn fetch_add(self, by: $width) -> $width {
                let mut seen = by;
                // SAFETY: as above.
                unsafe { asm!($fetch_add, word = in(reg) self.0, seen = inout($class) seen) };
                seen
            }

            #[inline(always)]
            fn seal(self) -> $width {
                let mut seen: $width = 1 << (<$width>::BITS - 1);
                // SAFETY: as above.
                unsafe { asm!($fetch_or, word = in(reg) self.0, seen = inout($class) seen) };
                seen
            }
        }
    };
}
counter!(
    u64,
    reg,
    "lock *(u64 *)({word} + 0) += {by}",
    "{seen} = atomic_fetch_add((u64 *)({word} + 0), {seen})",
    "{seen} = atomic_fetch_or((u64 *)({word} + 0), {seen})"
);
counter!(
    u32,
    wreg,
    "lock *(u32 *)({word} + 0) += {by}",
    "{seen} = atomic_fetch_add((u32 *)({word} + 0), {seen})",
    "{seen} = atomic_fetch_or((u32 *)({word} + 0), {seen})"
);

macro_rules! word {
    ($width:ty) => {
        impl Word<$width> for Shared<$width> {
            #[inline(always)]
            fn load(self) -> $width {
                self.load()
            }

            #[inline(always)]
            fn store(self, value: $width) {
                self.store(value);
            }

            #[inline(always)]
            fn swap(self, old: $width, new: $width) -> Result<(), $width> {
                self.swap(old, new)
            }
        }
    };
}
word!(u32);
word!(u64);
