//! `pinhole why`.

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;
use firewall_common::{
    abi::FlowState,
    key::{Direction, FlowKey as _},
    wire::{Headers, proto, tcp_flags},
};

use super::{
    args::Output,
    why_args::{Question, WhyArgs},
};
use crate::{
    bpf::{Instance, maps::FlowRow, private::Hook},
    error::{FAILURE, Usage},
    reasons,
    render::{self, Ink, Now, WhyView},
    why::{
        FORMS, Link, capture,
        frame::Packet,
        hex,
        judge::Judge,
        place::Wish,
        tuple::{Detail, Tuple},
    },
};

/// Captures beyond this are not read, bytes.
const LARGEST: u64 = 256 << 20;
/// Nor are those of more packets: each costs some kilobytes until all are shown.
const MOST: usize = 100_000;

/// Does what the command says.
///
/// # Errors
/// A question in a wrong form, nothing attached, other programs attached.
pub(super) fn run(instance: &Instance, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    if args.list_reasons {
        return list_reasons(args);
    }
    let question = args.question()?;
    // What is written wrong is said first, attached or not.
    match question {
        Question::Capture(path) => {
            let file = read(&path)?;
            let records = capture::read(&file)
                .map_err(|error| Usage::new(format!("{}: {error}", path.display())))?;
            if records.len() > MOST {
                return Err(too_large(&path, &format!("{} packets", records.len())).into());
            }
            let packets: Vec<_> = records.iter().map(Packet::captured).collect();
            answer(args, &Judge::open(instance)?, &packets, true)
        }
        Question::Hex(text) => {
            let bytes = hex::parse(text)?;
            let link = if args.l3 {
                Link::Ip
            } else {
                hex::link_of(&bytes)
            };
            let packet = Packet::of(&bytes, link);
            packet
                .frames(false)
                .map_err(|what| Usage::new(format!("--hex: {what}\n{FORMS}")))?;
            answer(args, &Judge::open(instance)?, &[packet], false)
        }
        Question::Tuple([protocol, src, dst]) => {
            let tuple = Tuple::parse(protocol, src, dst)?;
            args.check_detail(&tuple)?;
            let judge = Judge::open(instance)?;
            let detail = args.detail(&tuple, &judge)?;
            let packet = Packet::ip(&tuple.packet(&detail));
            answer(args, &judge, &[packet], false)
        }
    }
}

fn list_reasons(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    if args.markdown {
        render::print(&reasons::markdown())?;
    } else {
        render::list(&reasons::all(), args.list.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(
    args: &WhyArgs,
    judge: &Judge,
    packets: &[Packet],
    many: bool,
) -> anyhow::Result<ExitCode> {
    let answers = judge.ask(packets, &args.wish())?;
    let (names, now) = (judge.names()?, Now::read());
    let views: Vec<_> = answers
        .iter()
        .zip(1..)
        .map(|(answer, number)| WhyView::new(number, answer, &names, now))
        .collect();
    let shadow = judge.in_shadow();
    match (args.list.output, views.first()) {
        (Output::Json, Some(view)) if !many => render::json(view)?,
        (Output::Table, Some(view)) if !many => {
            render::print(&view.render(shadow, Ink::of_stdout()))?;
        }
        (output, _) => {
            render::list(&views, output)?;
            if output == Output::Table && !views.is_empty() {
                render::print(&format!("\n{}", render::summary(&views)))?;
            }
        }
    }
    let as_expected = |view: &WhyView| args.expect.is_none_or(|e| view.verdict == Some(e.name()));
    Ok(if views.iter().all(as_expected) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let unread = |error| {
        Usage::new(format!(
            "{}: {error}: a capture is expected there\n{FORMS}",
            path.display()
        ))
    };
    let len = fs::metadata(path).map_err(unread)?.len();
    if len > LARGEST {
        return Err(too_large(path, &format!("{} MiB", len >> 20)).into());
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn too_large(path: &Path, what: &str) -> Usage {
    Usage::new(format!(
        "{}: {what} are too many at once ({MOST} packets, {} MiB): cut it with `editcap -c {MOST}`, \
         or take one connection out of it with `tcpdump -r … -w … host …`",
        path.display(),
        LARGEST >> 20
    ))
}

impl WhyArgs {
    fn question(&self) -> Result<Question<'_>, Usage> {
        if let Some(text) = &self.hex {
            return Ok(Question::Hex(text));
        }
        match self.packet.as_slice() {
            [protocol, src, dst] => Ok(Question::Tuple([protocol, src, dst])),
            [path] => Ok(Question::Capture(path.into())),
            _ => Err(Usage::new(format!(
                "a packet is a protocol, a source and a destination, or the name of a capture\n\
                 {FORMS}"
            ))),
        }
    }

    fn wish(&self) -> Wish {
        let hook = match (self.inward, self.outward) {
            (true, _) => Some(Hook::Ingress),
            (_, true) => Some(Hook::Egress),
            _ => None,
        };
        Wish {
            iface: self.iface.clone(),
            hook,
        }
    }

    fn check_detail(&self, tuple: &Tuple) -> Result<(), Usage> {
        let tcp = [
            ("--flags", self.flags.is_some()),
            ("--seq", self.seq.is_some()),
            ("--ack", self.ack.is_some()),
        ];
        for (option, given) in tcp {
            if given && tuple.proto != proto::TCP {
                return Err(Usage::new(format!("{option} is for tcp\n{FORMS}")));
            }
        }
        if self.icmp_type.is_some() && !matches!(tuple.proto, proto::ICMP | proto::ICMPV6) {
            return Err(Usage::new(format!(
                "--icmp-type is for icmp and icmpv6\n{FORMS}"
            )));
        }
        Ok(())
    }

    /// What is not given is taken from the flow, so that the packet is the next
    /// one that fits.
    fn detail(&self, tuple: &Tuple, judge: &Judge) -> anyhow::Result<Detail> {
        let mut detail = Detail {
            flags: self.flags.unwrap_or(tcp_flags::SYN),
            seq: self.seq.unwrap_or(1),
            ack: self.ack.unwrap_or(0),
            window: self.win,
            payload: self.len,
            icmp_type: self.icmp_type.unwrap_or(match tuple.proto {
                proto::ICMPV6 => 128,
                _ => 8,
            }),
            icmp_code: self.icmp_code,
            id: self.id,
        };
        if tuple.proto != proto::TCP {
            return Ok(detail);
        }
        let headers = tuple.headers(&detail);
        if let Some(flow) = judge.flow(&headers)? {
            let (seq, ack) = next_of(&flow, &headers);
            detail.flags = self.flags.unwrap_or(tcp_flags::ACK);
            detail.seq = self.seq.unwrap_or(seq);
            detail.ack = self.ack.unwrap_or(ack);
        }
        Ok(detail)
    }
}

/// The sequence and acknowledgement number of the next packet of a flow.
fn next_of(row: &FlowRow, headers: &Headers) -> (u32, u32) {
    let (_, heading) = firewall_common::abi::FlowKey6::of(headers);
    let state = FlowState(row.flow.state);
    let direction = Direction::of(heading, state.first_heading());
    let end = |direction: Direction| row.flow.tcp[direction.index()].end;
    (end(direction), end(direction.flip()))
}
