//! Classic BPF for packet sockets of type `SOCK_DGRAM`: offsets count from the IP
//! header, with or without Ethernet below it.

use nix::libc;
use socket2::SockFilter;

/// Bytes of a packet that are kept: more than any SYN and any line has.
pub(super) const KEPT: u32 = 256;

/// Where the kernel keeps what is not in the packet (`linux/filter.h`).
const ANCILLARY: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = ANCILLARY + 4;
const INTERFACE: u32 = ANCILLARY + 8;
const CPU: u32 = ANCILLARY + 36;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u32 = 4;

const LOAD: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_AT: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_WORD_AT: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Which packets of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Index of the interface.
    pub(super) interface: u32,
    /// Those that leave by it, or those that arrive.
    pub(super) outgoing: bool,
    /// Those that this CPU handles; `None` for all.
    pub(super) cpu: Option<u32>,
}

/// Where a jump leads.
#[derive(Clone, Copy)]
enum To {
    /// The instruction after.
    Next,
    /// So many further on.
    Skip(u8),
    /// The end that keeps the packet.
    Keep,
    /// The end that does not.
    Leave,
}

/// Keeps the TCP segments that open a connection, and the lines that negotiate one:
/// PORT and EPRT, 227 and 229, at the beginning of a segment.
pub(super) fn program(wanted: Wanted) -> Vec<SockFilter> {
    let op = |code: u32, k: u32| (code, To::Next, To::Next, k);
    let must = |k: u32| (EQUAL, To::Next, To::Leave, k);
    let direction = if wanted.outgoing {
        must(OUTGOING)
    } else {
        (EQUAL, To::Leave, To::Next, OUTGOING)
    };
    let mut steps = vec![
        op(LOAD_WORD, INTERFACE),
        must(wanted.interface),
        op(LOAD_WORD, PACKET_TYPE),
        direction,
    ];
    if let Some(cpu) = wanted.cpu {
        steps.extend([op(LOAD_WORD, CPU), must(cpu)]);
    }
    steps.extend([
        // X becomes the length of the IP header.
        op(LOAD, 0),
        op(AND, 0xf0),
        (EQUAL, To::Next, To::Skip(4), 0x40),
        op(LOAD, 9),
        must(libc::IPPROTO_TCP as u32),
        op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
        (libc::BPF_JMP | libc::BPF_JA, To::Next, To::Next, 4),
        must(0x60),
        op(LOAD, 6),
        must(libc::IPPROTO_TCP as u32),
        op(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 40),
        // SYN without ACK.
        op(LOAD_AT, 13),
        op(AND, 0x12),
        (EQUAL, To::Keep, To::Next, 0x02),
        // X becomes the offset of the payload.
        op(LOAD_AT, 12),
        op(AND, 0xf0),
        op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 2),
        op(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        op(libc::BPF_MISC | libc::BPF_TAX, 0),
        op(LOAD_WORD_AT, 0),
    ]);
    for verb in [b"PORT", b"EPRT", b"227 ", b"229 "] {
        steps.push((EQUAL, To::Keep, To::Next, u32::from_be_bytes(*verb)));
    }
    let leave = steps.len();
    steps.extend([op(RETURN, 0), op(RETURN, KEPT)]);
    let resolve = |at: usize, to: To| match to {
        To::Next => 0,
        To::Skip(count) => count,
        To::Leave => (leave - at - 1) as u8,
        To::Keep => (leave - at) as u8,
    };
    let steps = steps.into_iter().enumerate();
    steps
        .map(|(at, (code, yes, no, k))| {
            SockFilter::new(code as u16, resolve(at, yes), resolve(at, no), k)
        })
        .collect()
}
