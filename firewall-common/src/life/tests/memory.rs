//! Flow tables in a memory of which every access counts.

use crate::{
    abi::{EndReason, Flow, FlowState, TcpSide},
    explore::{Cpu, Kind},
    key::Direction,
    life::{Entry, Place, Refused, Tables},
    tcp::{Cells, Counter, Word},
    time::Tick,
};

/// The words of an entry: state, last, seen, created, bytes and packets by
/// direction, then four of each side.
pub(crate) type Node = [u64; 16];

const STATE: usize = 0;
const LAST: usize = 1;
const SEEN: usize = 2;
const CREATED: usize = 3;
const BYTES: usize = 4;
const PACKETS: usize = 6;
const SIDES: usize = 8;

/// The place of the count of moves, behind those of the tables.
const MOVES: usize = 6;
/// Where the places of nodes begin.
const NODES: usize = 16;

pub(crate) fn node(flow: &Flow) -> Node {
    let side = |s: TcpSide| [s.end, s.maxend, s.maxack, s.maxwin].map(u64::from);
    let [a, b] = flow.tcp.map(side);
    let mut node = [0; 16];
    node[..8].copy_from_slice(&[
        flow.state,
        flow.last,
        flow.seen.into(),
        flow.created.into(),
        flow.bytes[0],
        flow.bytes[1],
        flow.packets[0].into(),
        flow.packets[1].into(),
    ]);
    node[SIDES..12].copy_from_slice(&a);
    node[12..].copy_from_slice(&b);
    node
}

pub(crate) fn flow(node: &Node) -> Flow {
    let side = |at: usize| TcpSide {
        end: node[at] as u32,
        maxend: node[at + 1] as u32,
        maxack: node[at + 2] as u32,
        maxwin: node[at + 3] as u32,
    };
    Flow {
        state: node[STATE],
        last: node[LAST],
        seen: node[SEEN] as u32,
        created: node[CREATED] as u32,
        bytes: [node[BYTES], node[BYTES + 1]],
        packets: [node[PACKETS] as u32, node[PACKETS + 1] as u32],
        tcp: [side(SIDES), side(SIDES + 4)],
    }
}

/// What one key has in three tables, and the nodes, which are reused as those of
/// an LRU map are: without waiting for anybody who still has a pointer to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    nodes: Vec<Node>,
    /// By table: each has nodes of its own.
    free: [Vec<usize>; 3],
    proved: Option<usize>,
    inside: Option<usize>,
    outside: Option<usize>,
    /// Flows that moved to the proved table.
    moves: u64,
    /// Entries put in and taken out, and flows that were ended for good.
    pub(crate) created: u32,
    pub(crate) removed: u32,
}

impl Memory {
    pub(crate) fn with(place: Place, entry: &Flow) -> Self {
        let mut memory = Self::default();
        memory.put(place, node(entry));
        memory.created = 0;
        memory
    }

    fn slot(&mut self, place: Place) -> &mut Option<usize> {
        match place {
            Place::Proved => &mut self.proved,
            Place::Inside => &mut self.inside,
            Place::Outside => &mut self.outside,
        }
    }

    pub(crate) fn at(&self, place: Place) -> Option<Flow> {
        let number = match place {
            Place::Proved => self.proved,
            Place::Inside => self.inside,
            Place::Outside => self.outside,
        };
        number.map(|number| flow(&self.nodes[number]))
    }

    /// The entries of the key, in the order in which they are looked for.
    pub(crate) fn entries(&self) -> Vec<(Place, Flow)> {
        [Place::Proved, Place::Inside, Place::Outside]
            .into_iter()
            .filter_map(|place| Some((place, self.at(place)?)))
            .collect()
    }

    /// The node that it went to, and whether that was another entry's before.
    fn put(&mut self, place: Place, entry: Node) -> Option<(usize, bool)> {
        if self.slot(place).is_some() {
            return None;
        }
        let reused = self.free[place as usize / 2].pop();
        let number = reused.unwrap_or(self.nodes.len());
        if reused.is_none() {
            self.nodes.push(entry);
        }
        self.nodes[number] = entry;
        *self.slot(place) = Some(number);
        self.created += 1;
        Some((number, reused.is_some()))
    }

    fn take(&mut self, place: Place) {
        if let Some(number) = self.slot(place).take() {
            self.free[place as usize / 2].push(number);
            self.removed += 1;
        }
    }

    fn displace(&mut self, place: Place, other: &Flow) -> u64 {
        let Some(number) = self.slot(place).take() else {
            return 0;
        };
        self.nodes[number] = node(other);
        number as u64 + 1
    }
}

/// The LRU displaces the key's entry, and the node goes to `other`, of another key.
pub(crate) fn displace(cpu: &Cpu<'_, Memory>, place: Place, other: &Flow) {
    let displaced = cpu.access(place as usize, Kind::Change, |memory: &mut Memory| {
        memory.displace(place, other)
    });
    if displaced != 0 {
        reused(cpu, displaced - 1);
    }
}

/// All words of a node have changed.
fn reused(cpu: &Cpu<'_, Memory>, node: u64) {
    for field in 0..16 {
        cpu.note(NODES + 16 * node as usize + field, Kind::Change);
    }
}

/// The tables as one CPU reaches them.
pub(crate) struct View<'a> {
    pub(crate) cpu: &'a Cpu<'a, Memory>,
    pub(crate) digest: u32,
    pub(crate) now: Tick,
    /// Ticks for which an entry lives that is not renewed.
    pub(crate) life: u32,
    pub(crate) flow: Flow,
    /// [`Memory::moves`] when it was noted.
    pub(crate) moves: u64,
}

impl View<'_> {
    fn moves(&self) -> u64 {
        self.cpu.access(MOVES, Kind::Load, |memory| memory.moves)
    }
}

impl<'a> Tables for View<'a> {
    type Entry = At<'a>;

    fn digest(&self) -> u32 {
        self.digest
    }

    fn now(&self) -> Tick {
        self.now
    }

    fn look(&self, place: Place) -> Option<At<'a>> {
        let found = self.cpu.access(place as usize, Kind::Load, |memory| {
            match *memory.slot(place) {
                Some(number) => number as u64 + 1,
                None => 0,
            }
        });
        let node = usize::try_from(found.checked_sub(1)?).unwrap();
        Some(At {
            cpu: self.cpu,
            node,
        })
    }

    fn is_expired(&self, entry: At<'a>, _: FlowState) -> bool {
        let seen = Word::<u32>::load(entry.seen());
        self.now.is_after(Tick(seen).plus(self.life))
    }

    fn note_moves(&mut self) {
        self.moves = self.moves();
    }

    fn have_moved(&self) -> bool {
        self.moves() != self.moves
    }

    fn count_move(&mut self) {
        self.cpu.access(MOVES, Kind::Change, |memory| {
            memory.moves += 1;
            0
        });
    }

    fn copy(&mut self, entry: At<'a>) {
        let words: [u64; 16] =
            std::array::from_fn(|field| Field(entry, field).access(Kind::Load, |word| *word));
        self.flow = flow(&words);
    }

    fn flow(&mut self) -> &mut Flow {
        &mut self.flow
    }

    fn insert(&mut self, place: Place) -> Result<(), Refused> {
        const REUSED: u64 = 1 << 32;
        let entry = node(&self.flow);
        let put = |memory: &mut Memory| match memory.put(place, entry) {
            Some((number, reused)) => (number as u64 + 1) | (u64::from(reused) * REUSED),
            None => 0,
        };
        match self.cpu.access(place as usize, Kind::Change, put) {
            0 => return Err(Refused::Exists),
            put if put >= REUSED => reused(self.cpu, put - REUSED - 1),
            _ => {}
        }
        Ok(())
    }

    fn remove(&mut self, place: Place, _: At<'a>, _: FlowState, _: EndReason) {
        self.cpu.access(place as usize, Kind::Change, |memory| {
            memory.take(place);
            0
        });
    }

    fn end_of(&self, _: FlowState) -> EndReason {
        EndReason::Expired
    }

    fn recycled(&self) {}
}

/// An entry as one CPU sees it.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) cpu: &'a Cpu<'a, Memory>,
    pub(crate) node: usize,
}

/// One of its words.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a>(At<'a>, usize);

impl<'a> Field<'a> {
    fn access(self, kind: Kind, act: impl FnOnce(&mut u64) -> u64) -> u64 {
        let Self(At { cpu, node }, field) = self;
        cpu.access(NODES + 16 * node + field, kind, |memory| {
            act(&mut memory.nodes[node][field])
        })
    }
}

macro_rules! word {
    ($width:ty) => {
        impl Word<$width> for Field<'_> {
            fn load(self) -> $width {
                self.access(Kind::Load, |word| *word) as $width
            }

            fn store(self, value: $width) {
                self.access(Kind::Change, |word| {
                    *word = value.into();
                    0
                });
            }

            fn swap(self, old: $width, new: $width) -> Result<(), $width> {
                let seen = self.access(Kind::Change, |word| {
                    let seen = *word;
                    if seen == u64::from(old) {
                        *word = new.into();
                    }
                    seen
                });
                let seen = seen as $width;
                if seen == old { Ok(()) } else { Err(seen) }
            }
        }

        impl Counter<$width> for Field<'_> {
            fn add(self, by: $width) {
                Counter::<$width>::fetch_add(self, by);
            }

            fn fetch_add(self, by: $width) -> $width {
                self.access(Kind::Change, |word| {
                    let seen = *word as $width;
                    *word = seen.wrapping_add(by).into();
                    seen.into()
                }) as $width
            }

            fn seal(self) -> $width {
                self.access(Kind::Change, |word| {
                    let seen = *word as $width;
                    *word = (seen | 1 << (<$width>::BITS - 1)).into();
                    seen.into()
                }) as $width
            }
        }
    };
}
word!(u32);
word!(u64);

impl<'a> Cells for At<'a> {
    type Wide = Field<'a>;
    type Narrow = Field<'a>;

    fn state(self) -> Field<'a> {
        Field(self, STATE)
    }

    fn last(self) -> Field<'a> {
        Field(self, LAST)
    }

    fn seen(self) -> Field<'a> {
        Field(self, SEEN)
    }

    fn end(self, direction: Direction) -> Field<'a> {
        Field(self, SIDES + 4 * direction.index())
    }

    fn maxend(self, direction: Direction) -> Field<'a> {
        Field(self, SIDES + 4 * direction.index() + 1)
    }

    fn maxack(self, direction: Direction) -> Field<'a> {
        Field(self, SIDES + 4 * direction.index() + 2)
    }

    fn maxwin(self, direction: Direction) -> Field<'a> {
        Field(self, SIDES + 4 * direction.index() + 3)
    }
}

impl<'a> Entry for At<'a> {
    type Packets = Field<'a>;
    type Bytes = Field<'a>;

    fn packets(self, direction: Direction) -> Field<'a> {
        Field(self, PACKETS + direction.index())
    }

    fn bytes(self, direction: Direction) -> Field<'a> {
        Field(self, BYTES + direction.index())
    }
}
