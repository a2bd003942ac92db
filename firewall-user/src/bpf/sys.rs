//! The system calls that aya does not offer: the only unsafe code of user space.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{HashMap, IterableMap as _, MapData};
use aya_obj::generated::{bpf_attr, bpf_cmd};

/// What one batch look-up gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Elements written, from the front of both slices.
    pub(crate) count: usize,
    /// Where the next look-up goes on; `None` at the end of the map.
    pub(crate) cursor: Option<u32>,
}

/// Copies the next elements of a hash map into `keys` and `values`, which are of one length.
///
/// Each bucket is visited once, so a walk ends however fast the map changes;
/// get-next-key starts again whenever its key has gone. It does not touch the
/// reference bit of an LRU map. `ENOSPC`: a single bucket holds more than the
/// slices do.
pub(crate) fn lookup_batch<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    cursor: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let mut from = cursor.unwrap_or(0);
    let mut to = 0_u32;
    // SAFETY: `bpf_attr` is a union of integers; all zero is valid, and the
    // kernel demands zero behind the part that a command uses.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    attr.batch.in_batch = cursor.map_or(0, |_| (&raw mut from) as u64);
    attr.batch.out_batch = (&raw mut to) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    attr.batch.map_fd = map.map().fd().as_fd().as_raw_fd().cast_unsigned();

    // SAFETY: the kernel writes at most `count` keys and values of the map's
    // own sizes, which aya held against `K` and `V` when it made the `HashMap`;
    // any bytes are valid for them (`aya::Pod`). A hash map's cursor is a u32.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_long,
            &raw mut attr,
            mem::size_of::<bpf_attr>(),
        )
    };
    // SAFETY: the kernel writes the same member of the union that was set above.
    let count = unsafe { attr.batch.count } as usize;
    if result == 0 {
        let cursor = Some(to);
        return Ok(Batch { count, cursor });
    }
    match io::Error::last_os_error() {
        end if end.raw_os_error() == Some(libc::ENOENT) => Ok(Batch {
            count,
            cursor: None,
        }),
        other => Err(other),
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of every time in the maps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a whole `timespec`; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
