//! Records of the ring, as typed values.

use std::{hint, io, os::fd::OwnedFd, thread, time::Duration};

use aya::maps::{MapData, RingBuf};
use bytemuck::pod_read_unaligned;
use firewall_common::{
    abi::{EventHeader, EventKind, event_flags},
    key::{Direction, Heading},
};
use tokio::io::unix::AsyncFd;

use crate::bpf::sys::{RingEnds, monotonic_ns, readable};

/// Looks in a row at a record that is reserved and not yet committed.
const LOOKS: u32 = 1000;
/// Time between the looks that come after those: the program that writes it may have lost its CPU to this
/// very thread.
const UNCOMMITTED: Duration = Duration::from_micros(10);

/// Why bytes of the ring are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than a header.
    #[error(
        "a ring record of {0} bytes is shorter than its header: the programs are of another version; run `pinhole unload` and attach again"
    )]
    NoHeader(usize),
    /// The header promises more than there is.
    #[error(
        "a ring record says {said} bytes and has {have}: the programs are of another version; run `pinhole unload` and attach again"
    )]
    CutShort {
        /// Bytes that the header says.
        said: u32,
        /// Bytes behind the header.
        have: usize,
    },
    /// Of no kind that this agent knows.
    #[error(
        "a ring record is of the unknown kind {0}: the programs are of another version; run `pinhole unload` and attach again"
    )]
    Kind(u16),
}

/// A record of the ring.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its head.
    pub header: EventHeader,
    /// What it tells.
    pub kind: EventKind,
    /// Payload, or for a held SYN its frame.
    pub data: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a record. Its bytes may be longer than it is: records come in size classes.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (head, rest) = bytes
            .split_at_checked(size_of::<EventHeader>())
            .ok_or(RecordError::NoHeader(bytes.len()))?;
        // The ring aligns records to eight bytes, but nothing here depends on it.
        let header: EventHeader = pod_read_unaligned(head);
        let kind = EventKind::try_from(header.kind).map_err(RecordError::Kind)?;
        let data = usize::try_from(header.len)
            .ok()
            .and_then(|len| rest.get(..len))
            .ok_or(RecordError::CutShort {
                said: header.len,
                have: rest.len(),
            })?;
        Ok(Self { header, kind, data })
    }

    /// The way of the packet within its flow.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        if self.header.flags & event_flags::REPLY != 0 {
            Direction::Reply
        } else {
            Direction::Original
        }
    }

    /// The way of the packet through its key.
    #[must_use]
    pub const fn heading(&self) -> Heading {
        if self.header.flags & event_flags::HEADING_DOWN != 0 {
            Heading::Down
        } else {
            Heading::Up
        }
    }

    /// The way of the flow's first packet through the key.
    #[must_use]
    pub const fn first_heading(&self) -> Heading {
        match (self.direction(), self.heading()) {
            (Direction::Original, heading) => heading,
            (Direction::Reply, Heading::Up) => Heading::Down,
            (Direction::Reply, Heading::Down) => Heading::Up,
        }
    }
}

/// The ring, to be waited for.
pub struct Events {
    ring: RingBuf<MapData>,
    ends: RingEnds,
    readable: AsyncFd<OwnedFd>,
    /// There may be more than was taken.
    more: bool,
}

impl Events {
    /// Registers the ring with the running tokio runtime.
    ///
    /// # Errors
    /// Those of epoll and mmap.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let readable = readable(&ring)?;
        Ok(Self {
            ends: RingEnds::of(&ring)?,
            ring,
            readable,
            more: true,
        })
    }

    /// Waits for a record that somebody is to be woken for.
    ///
    /// Cancel safe: nothing is taken.
    ///
    /// # Errors
    /// Those of epoll.
    pub async fn wait(&self) -> io::Result<()> {
        if self.more {
            // Timers and signals are seen only when the runtime has its turn.
            tokio::task::yield_now().await;
        } else {
            // Before the ring is looked at: a record committed since then renews it.
            self.readable.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Hands what is on the ring to `each`, for `turn_ns` or as long as the last record
    /// takes.
    ///
    /// A record that is reserved and not yet committed is waited for, some hundred
    /// nanoseconds: once somebody has woken the agent, nobody does again for what is
    /// reserved before it sleeps.
    pub fn drain(&mut self, turn_ns: u64, mut each: impl FnMut(&[u8])) {
        let until = monotonic_ns().saturating_add(turn_ns);
        self.more = true;
        let mut looks = 0;
        while self.more && monotonic_ns() < until {
            match self.ring.next() {
                Some(record) => {
                    looks = 0;
                    each(&record);
                }
                None if self.ends.is_read() => self.more = false,
                None if looks < LOOKS => {
                    looks += 1;
                    hint::spin_loop();
                }
                None => thread::sleep(UNCOMMITTED),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::{Zeroable as _, bytes_of};

    fn header(kind: u16, len: u32) -> EventHeader {
        EventHeader {
            kind,
            len,
            ..EventHeader::zeroed()
        }
    }

    #[test]
    fn a_record_may_be_longer_than_it_says_but_not_shorter() {
        let mut bytes = bytes_of(&header(2, 4)).to_vec();
        bytes.extend_from_slice(b"PASV\0\0\0\0");
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(
            (record.kind, record.data),
            (EventKind::Payload, b"PASV".as_slice())
        );
        let cut = bytes.get(..bytes.len() - 5).unwrap();
        assert_eq!(
            Record::parse(cut).unwrap_err(),
            RecordError::CutShort { said: 4, have: 3 }
        );
        assert_eq!(Record::parse(b"x").unwrap_err(), RecordError::NoHeader(1));
        let unknown = header(99, 0);
        assert_eq!(
            Record::parse(bytes_of(&unknown)).unwrap_err(),
            RecordError::Kind(99)
        );
        let huge = header(2, u32::MAX);
        assert!(Record::parse(bytes_of(&huge)).is_err());
    }

    #[test]
    fn alignment_does_not_matter() {
        let mut bytes = vec![0];
        bytes.extend_from_slice(bytes_of(&header(3, 0)));
        assert_eq!(Record::parse(&bytes[1..]).unwrap().kind, EventKind::Fin);
    }

    #[test]
    fn the_originator_is_found_from_either_direction() {
        for (flags, want) in [
            (0, Heading::Up),
            (event_flags::HEADING_DOWN, Heading::Down),
            (event_flags::REPLY, Heading::Down),
            (event_flags::REPLY | event_flags::HEADING_DOWN, Heading::Up),
        ] {
            let mut h = header(1, 0);
            h.flags = flags;
            let record = Record::parse(bytes_of(&h)).unwrap().first_heading();
            assert_eq!(record, want);
        }
    }
}
