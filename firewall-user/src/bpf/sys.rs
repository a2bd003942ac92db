//! The system calls that neither std nor aya offers: the only unsafe code of user space.

use std::{
    borrow::Borrow,
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicUsize, Ordering, fence},
};

use aya::maps::{Array, HashMap, IterableMap as _, MapData, PerCpuArray};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use tokio::io::{Interest, unix::AsyncFd};

use super::text;

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

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
    // SAFETY: aya held the map's sizes against `K` and `V` when it made the `HashMap`,
    // and any bytes are valid for them (`aya::Pod`). A hash map's cursor is a u32.
    unsafe { batch_of(map.map(), cursor, keys, values) }
}

/// [`lookup_batch`] of any map.
///
/// # Safety
///
/// `K` must be of the map's size, and the map one whose cursor is a u32. `values` must have
/// room for as many elements of the map as the shorter of both slices is long.
unsafe fn batch_of<K: aya::Pod, V: aya::Pod>(
    map: &MapData,
    cursor: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch> {
    let mut from = cursor.unwrap_or(0);
    let mut to = 0_u32;
    let mut attr = zeroed_attr();
    attr.batch.in_batch = cursor.map_or(0, |_| (&raw mut from) as u64);
    attr.batch.out_batch = (&raw mut to) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    attr.batch.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();

    // SAFETY: the kernel writes at most `count` keys and values, for which there is room
    // by the contract above.
    let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
    // SAFETY: the kernel writes the same member of the union that was set above.
    let count = unsafe { attr.batch.count } as usize;
    match result {
        Ok(_) => Ok(Batch {
            count,
            cursor: Some(to),
        }),
        Err(end) if end.raw_os_error() == Some(libc::ENOENT) => Ok(Batch {
            count,
            cursor: None,
        }),
        Err(other) => Err(other),
    }
}

/// Copies the first `len` elements of an array, those of all possible CPUs of the first element
/// first, in one call. Linux 5.13 and later.
///
/// # Errors
///
/// `EINVAL` for a `V` whose size is no multiple of eight; what the kernel says.
pub fn lookup_per_cpu<V: aya::Pod + Default>(
    map: &PerCpuArray<impl Borrow<MapData>, V>,
    len: usize,
) -> io::Result<Vec<V>> {
    // The kernel rounds each CPU's value up to eight bytes.
    if !mem::size_of::<V>().is_multiple_of(8) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let mut keys = vec![0_u32; len];
    let mut values = vec![V::default(); len * cpus];
    // SAFETY: an array's keys and cursor are u32. An element is a value of the map's own size,
    // which aya held against `V`, for each possible CPU (`nr_cpus`), and `values` has room
    // for as many as there are `keys`.
    unsafe { batch_of(map.map(), None, &mut keys, &mut values) }?;
    Ok(values)
}

/// All elements of an array.
pub(crate) fn lookup_all<V: aya::Pod + bytemuck::Zeroable>(
    map: &Array<MapData, V>,
) -> io::Result<Vec<V>> {
    let mut values = vec![V::zeroed(); map.len() as usize];
    let mut keys = vec![0_u32; values.len()];
    // SAFETY: an array's keys and cursor are u32, and aya held the size of its values
    // against `V` when it made the `Array`.
    let batch = unsafe { batch_of(map.map(), None, &mut keys, &mut values) }?;
    if batch.count == values.len() {
        Ok(values)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Writes elements of an array; `indices` and `values` are of one length.
pub(crate) fn update_batch<M: Borrow<MapData>, V: aya::Pod>(
    map: &Array<M, V>,
    indices: &[u32],
    values: &[V],
) -> io::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let mut attr = zeroed_attr();
    attr.batch.keys = indices.as_ptr() as u64;
    attr.batch.values = values.as_ptr() as u64;
    attr.batch.count = u32::try_from(indices.len().min(values.len())).unwrap_or(u32::MAX);
    attr.batch.map_fd = map.map().fd().as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the kernel reads `count` keys, which are u32, and as many values of the
    // size that aya held against `V` when it made the `Array`.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(|_| ())
}

/// Calls bpf(2).
///
/// # Safety
///
/// Every address in `attr` must be valid for what `cmd` does there.
unsafe fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes no more of `attr` than its size; the
    // caller vouches for the addresses inside.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as libc::c_long,
            std::ptr::from_mut(attr),
            mem::size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of integers; all zero is valid, and the
    // kernel demands zero behind the part that a command uses.
    unsafe { mem::zeroed() }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of every time in the maps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Gives memory that is not in use any more back to the kernel: what loading takes (the
/// kernel's own BTF among it) is more than a running agent ever does.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a whole `timespec`; both clocks in use always exist.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// CPU time that the calling thread has taken, ns.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Puts the calling thread into the real-time class that takes turns, at its lowest
/// priority (`SCHED_RR`), or into the ordinary one. Its children are ordinary.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_NICE`.
pub fn set_realtime(on: bool) -> io::Result<()> {
    let (policy, sched_priority) = if on {
        (libc::SCHED_RR, 1)
    } else {
        (libc::SCHED_OTHER, 0)
    };
    let param = libc::sched_param { sched_priority };
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the pointer is to a whole `sched_param`; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const param) })
}

/// Opens a pinned object (`BPF_OBJ_GET`).
///
/// # Errors
///
/// What the kernel says; `NotFound` if there is no such pin.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: `pathname` is NUL-terminated and outlives the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Detaches a link at once (`BPF_LINK_DETACH`, kernel 5.9).
///
/// Closing and unlinking would do it as well, but only after a grace period.
///
/// # Errors
///
/// What the kernel says.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attribute holds no address.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(|_| ())
}

/// Waits for `ring`, a ring buffer or what reads one, to have records: await
/// `readable`, drain the ring, then `clear_ready`.
///
/// # Errors
///
/// What the kernel says.
pub fn readable(ring: impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = ring.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor belongs to the `AsyncFd`, which alone can close it,
    // and an `OwnedFd` is always the same one.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(Into::into)
}

/// An alarm clock for what is far away: it wakes a thread once, for which the runtime's own
/// timers need two turns and two wake-ups beyond 64 ms.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    /// For when it is set, `CLOCK_MONOTONIC` ns.
    set_for: Option<u64>,
}

impl Alarm {
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        check(fd)?;
        // SAFETY: a new descriptor, which nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            timer: readable(fd)?,
            set_for: None,
        })
    }

    /// Waits until `CLOCK_MONOTONIC` is `at_ns`; not at all if it is.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub async fn wait_until(&mut self, at_ns: u64) -> io::Result<()> {
        while monotonic_ns() < at_ns {
            if self.set_for != Some(at_ns) {
                self.set(at_ns)?;
                self.set_for = Some(at_ns);
            }
            // It may have rung for what it was set for before.
            self.timer.readable().await?.clear_ready();
        }
        Ok(())
    }

    fn set(&self, at_ns: u64) -> io::Result<()> {
        const NS: u64 = firewall_common::time::NS_PER_SEC;
        let once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let at = libc::timespec {
            tv_sec: (at_ns / NS).cast_signed(),
            tv_nsec: (at_ns % NS).cast_signed(),
        };
        let spec = libc::itimerspec {
            it_interval: once,
            it_value: at,
        };
        let fd = self.timer.as_raw_fd();
        // SAFETY: `spec` is read, and nothing is written.
        check(unsafe {
            libc::timerfd_settime(
                fd,
                libc::TFD_TIMER_ABSTIME,
                &raw const spec,
                ptr::null_mut(),
            )
        })
    }
}

/// How far reader and writers have come on a ring, which aya does not tell.
#[derive(Debug)]
pub struct RingEnds {
    /// Two pages, of which each begins with a position in bytes since the ring was made:
    /// that of the reader, and that of the writers (`kernel/bpf/ringbuf.c`).
    pages: NonNull<libc::c_void>,
    page: usize,
}

// SAFETY: what the pages hold is only read, and as atomics.
unsafe impl Send for RingEnds {}

impl RingEnds {
    /// Maps those of `ring`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn of(ring: impl AsFd) -> io::Result<Self> {
        // SAFETY: reads a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let fd = ring.as_fd().as_raw_fd();
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let pages = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * page,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let pages = NonNull::new(pages).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pages, page })
    }

    /// Has the reader passed all that writers have reserved?
    ///
    /// Either this sees a record that is reserved meanwhile, or its writer sees how far the
    /// reader has come: each has a full barrier between its own place and its look at the
    /// other's (`pinhole_ring_flags` in `firewall-ebpf`).
    #[must_use]
    pub fn is_read(&self) -> bool {
        fence(Ordering::SeqCst);
        self.position(0) == self.position(1)
    }

    fn position(&self, page: usize) -> usize {
        // SAFETY: 0 or 1, within the mapping.
        let at = unsafe { self.pages.byte_add(page * self.page) };
        // SAFETY: aligned as pages are, and mapped as long as `self` lives.
        let position = unsafe { AtomicUsize::from_ptr(at.cast().as_ptr()) };
        position.load(Ordering::Acquire)
    }
}

impl Drop for RingEnds {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, and nothing refers to it.
        unsafe { libc::munmap(self.pages.as_ptr(), 2 * self.page) };
    }
}

/// Is a bpffs mounted at `path`?
///
/// # Errors
///
/// If `path` does not exist or cannot be looked at.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a value of this plain structure.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: `path` is NUL-terminated, `stat` is writable.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut stat) })?;
    Ok(stat.f_type as i64 == BPF_FS_MAGIC)
}

/// Mounts a bpffs at `path`.
///
/// # Errors
///
/// What the kernel says; needs `CAP_SYS_ADMIN`.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let kind = c"bpf";
    let options = c"mode=700";
    // SAFETY: all strings are NUL-terminated and outlive the call.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    })
}

/// Sends `signal` to the process `pid`; 0 only asks whether it exists.
///
/// # Errors
///
/// ESRCH if there is no such process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(pid, signal) })
}

/// The user whose rights this process has.
#[must_use]
pub fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Leaves the session of the terminal, and outlives its end.
///
/// # Errors
///
/// If this process leads a process group.
pub fn leave_terminal() -> io::Result<()> {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() }.min(0))
}

/// A process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub pid: u32,
    /// The user whose rights it has.
    pub uid: u32,
}

/// Who is at the other end of a Unix socket (`SO_PEERCRED`).
///
/// # Errors
///
/// What the kernel says.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = mem::size_of_val(&cred) as libc::socklen_t;
    // SAFETY: `cred` is writable for the length that `len` says.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    })?;
    Ok(Peer {
        pid: cred.pid as u32,
        uid: cred.uid,
    })
}

/// Has the kernel say in words why it refuses a request on a netlink socket.
///
/// # Errors
///
/// What the kernel says.
pub fn extended_acks(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is readable for the length that is given.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        )
    })
}

/// Moves the calling thread, and no other, into a network namespace.
///
/// # Errors
///
/// What the kernel says; needs `CAP_SYS_ADMIN`.
pub fn enter_netns(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open, and sockets of other threads stay where they are.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Binds a netlink socket to multicast groups, a bit each.
///
/// # Errors
///
/// What the kernel says.
pub fn join_netlink(socket: impl AsFd, groups: u32) -> io::Result<()> {
    // SAFETY: all-zero is a value of this plain structure.
    let mut own: libc::sockaddr_nl = unsafe { mem::zeroed() };
    own.nl_family = libc::AF_NETLINK as u16;
    own.nl_groups = groups;
    // SAFETY: the pointer is to as many bytes as is said.
    check(unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const own).cast(),
            size_of_val(&own) as libc::socklen_t,
        )
    })
}

/// The driver of an interface, as `ethtool -i` names it.
///
/// # Errors
///
/// ENODEV without such an interface, EOPNOTSUPP if it does not say.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the command, driver[32] and what follows it.
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    ethtool(interface, &mut info)?;
    Ok(text(bytemuck::cast_slice(&info[1..9])))
}

/// Pairs of queues, as `ethtool -l` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// In use.
    pub used: u32,
    /// As many as there are.
    pub most: u32,
}

/// How many combined channels an interface has.
///
/// # Errors
///
/// ENODEV without such an interface, EOPNOTSUPP if it does not say.
pub fn channels(interface: &str) -> io::Result<Channels> {
    // struct ethtool_channels: the command, four maxima, four numbers in use; of each the
    // combined ones are last.
    let mut words = [0; 9];
    words[0] = ETHTOOL_GCHANNELS;
    ethtool(interface, &mut words)?;
    Ok(Channels {
        used: words[8],
        most: words[4],
    })
}

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// The names of features, `enum ethtool_stringset`.
const ETH_SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`, in words.
const NAME_WORDS: usize = 8;

/// The offload features that an interface uses, by the kernel's names for them, as
/// `ethtool -k` lists them.
///
/// # Errors
///
/// ENODEV without such an interface, EOPNOTSUPP without features.
pub fn features(interface: &str) -> io::Result<Vec<String>> {
    let names = feature_names(interface)?;
    // struct ethtool_gfeatures: available, requested, active, never changed.
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0; 2 + 4 * blocks];
    words[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ethtool(interface, &mut words)?;
    let active = |at: usize| {
        words
            .get(2 + 4 * (at / 32) + 2)
            .is_some_and(|w| w >> (at % 32) & 1 == 1)
    };
    let names = names.into_iter().enumerate();
    Ok(names
        .filter(|(at, _)| active(*at))
        .map(|(_, name)| name)
        .collect())
}

/// Turns features on or off. A device may keep one all the same: read it again.
///
/// # Errors
///
/// What the kernel says. Names that it does not know are passed over.
pub fn set_features(interface: &str, wanted: &[&str], on: bool) -> io::Result<()> {
    let names = feature_names(interface)?;
    // struct ethtool_sfeatures: valid, requested.
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0; 2 + 2 * blocks];
    words[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
    for (at, _) in names
        .iter()
        .enumerate()
        .filter(|(_, name)| wanted.contains(&name.as_str()))
    {
        let (block, bit) = (2 + 2 * (at / 32), 1 << (at % 32));
        words[block] |= bit;
        words[block + 1] |= if on { bit } else { 0 };
    }
    ethtool(interface, &mut words)
}

fn feature_names(interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: a reserved word, a mask of sets, then their sizes.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ethtool(interface, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: set, count, names.
    let mut words = vec![0; 3 + NAME_WORDS * count];
    words[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ethtool(interface, &mut words)?;
    let names = words.get(3..).unwrap_or_default().chunks_exact(NAME_WORDS);
    Ok(names.map(|name| text(bytemuck::cast_slice(name))).collect())
}

/// Sends frames out of interfaces of the network namespace that it is first used in.
#[derive(Debug, Default)]
pub struct FrameSender(Option<socket2::Socket>);

impl FrameSender {
    /// Sends a frame, link header and all, past the routing and the filters of the
    /// stack, but through TC.
    ///
    /// # Errors
    ///
    /// What the kernel says: `EPERM` without CAP_NET_RAW.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let socket = match &mut self.0 {
            Some(socket) => socket,
            // Protocol 0: it receives nothing.
            none => none.insert(socket2::Socket::new(
                socket2::Domain::PACKET,
                socket2::Type::RAW.nonblocking(),
                None,
            )?),
        };
        // SAFETY: all-zero is a value of this plain structure.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex as i32;
        // SAFETY: both pointers are to as many bytes as is said.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        check(if sent < 0 { -1 } else { 0 })
    }
}

/// Runs the ethtool command in `words`, a structure of `linux/ethtool.h` that is
/// as long as the sizes in its head say.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    // SAFETY: all-zero is a value of this plain structure.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: `request` names the interface and points to `words`; the callers
    // above give each command the room that its head and the count of features,
    // which never changes, ask for.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })
}

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_for_what_it_is_set_for_last() {
        let mut alarm = Alarm::new().unwrap();
        let begun = monotonic_ns();
        alarm.wait_until(begun).await.unwrap();
        let (soon, late) = (begun + 2_000_000, begun + 20_000_000);
        tokio::select! {
            biased;
            rang = alarm.wait_until(soon) => rang.unwrap(),
            () = std::future::ready(()) => {}
        }
        alarm.wait_until(late).await.unwrap();
        assert!(monotonic_ns() >= late);
    }

    #[test]
    fn a_missing_process_is_told_from_a_running_one() {
        kill(std::process::id(), 0).unwrap();
        assert!(kill(0, 0).is_err());
        assert!(kill(u32::MAX, 0).is_err());
    }

    #[test]
    fn an_ordinary_directory_is_no_bpffs() {
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
        assert!(is_bpffs(Path::new("/nowhere/at/all")).is_err());
    }

    #[test]
    fn a_missing_interface_has_no_offloads() {
        assert!(features("no-such-nic0").is_err());
        assert!(features("a-name-that-is-far-too-long").is_err());
        assert!(channels("no-such-nic0").is_err());
    }

    #[test]
    fn the_loopback_interface_has_features_by_name() {
        let found = features("lo").unwrap();
        assert!(found.iter().any(|name| name == "loopback"), "{found:?}");
        assert!(!found.iter().any(|name| name == "rx-vlan-hw-parse"));
    }
}
