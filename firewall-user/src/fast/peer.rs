//! Whether packets arrive with their checksums written.
//!
//! Between the two ends of a veth nothing is ever computed: a sender leaves the
//! checksum to the "device", and the receiver takes the packet's word for it. That
//! word is not in the frame, and a packet that XDP sends on has lost it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    bpf::sys,
    netlink::{
        bypass::{self, Device},
        route::{self, Link},
    },
};

/// How long an answer about another namespace is good: finding it takes a look at
/// every process.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Features of a device to which the stack leaves checksums.
const OFFLOADS: [&str; 4] = [
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-checksum-ip-generic",
    "tx-checksum-sctp",
];
/// Where namespaces have names.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// What is known of the packets that arrive at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    /// They are whole.
    Complete,
    /// The other end, of this name, may leave them open.
    Partial(String),
    /// A virtual machine may.
    Guest,
    /// Why it is not known.
    Unknown(String),
}

/// Index of a veth, of its other end, and the number of that one's namespace.
type Wire = (u32, u32, i32);

/// The other ends of veths, in any namespace.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<Wire, (Instant, Checksums)>,
}

impl Peers {
    pub(super) fn checksums(&mut self, link: &Link, device: &Device, links: &[Link]) -> Checksums {
        if device.vnet_header {
            return Checksums::Guest;
        }
        if link.kind.as_deref() != Some("veth") {
            return Checksums::Complete;
        }
        match device.link {
            None => Checksums::Unknown("the kernel does not name it".into()),
            Some((peer, None)) => match links.iter().find(|other| other.index == peer) {
                Some(peer) => of_device(&peer.name),
                None => Checksums::Unknown("it is gone".into()),
            },
            Some((peer, Some(namespace))) => self.elsewhere((device.index, peer, namespace)),
        }
    }

    fn elsewhere(&mut self, wire: Wire) -> Checksums {
        let now = Instant::now();
        self.known
            .retain(|_, (since, _)| now.duration_since(*since) < GOOD_FOR);
        let (_, known) = self.known.entry(wire).or_insert_with(|| {
            let (_, peer, namespace) = wire;
            (now, in_namespace(namespace, peer))
        });
        known.clone()
    }
}

/// Of the device with this name, in the namespace of the calling thread.
fn of_device(name: &str) -> Checksums {
    match sys::features(name) {
        Ok(active) if active.iter().any(|f| OFFLOADS.contains(&f.as_str())) => {
            Checksums::Partial(name.to_owned())
        }
        Ok(_) => Checksums::Complete,
        Err(error) => Checksums::Unknown(error.to_string()),
    }
}

fn in_namespace(number: i32, index: u32) -> Checksums {
    let Some(namespace) = find(number) else {
        return Checksums::Unknown("its network namespace is not found".into());
    };
    // A thread of its own: it does not come back.
    let asked = thread::spawn(move || -> io::Result<Checksums> {
        sys::enter_netns(namespace.as_fd())?;
        let links = route::links()?;
        let peer = links.iter().find(|link| link.index == index);
        Ok(match peer {
            Some(peer) => of_device(&peer.name),
            None => Checksums::Unknown("it is gone".into()),
        })
    });
    match asked.join() {
        Ok(Ok(checksums)) => checksums,
        Ok(Err(error)) => Checksums::Unknown(format!("its network namespace: {error}")),
        Err(_) => Checksums::Unknown("the look at it failed".into()),
    }
}

/// The namespace that has `number` in this one: of those with a name, and those of processes.
fn find(number: i32) -> Option<File> {
    let mut seen = BTreeSet::new();
    candidates().find_map(|path| {
        let inode = fs::metadata(&path).ok()?.ino();
        if !seen.insert(inode) {
            return None;
        }
        let file = File::open(path).ok()?;
        let found = bypass::number_of(file.as_fd()).ok()?;
        (found == Some(number)).then_some(file)
    })
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = NAMED.into_iter().flat_map(entries);
    let of_processes = entries("/proc").filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    });
    named.chain(of_processes.map(|path| path.join("ns/net")))
}

fn entries(dir: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
