//! What the programs cost by themselves: run over and over on one packet in memory, less
//! what an empty program costs.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
};
use firewall_common::abi::programs;
use firewall_user::bpf::{
    loader::{OBJECT, ProgramLog},
    sys::thread_cpu_ns,
};

use super::{
    Bench,
    field::{Field, Mode, data, opening},
    metric::Metric,
    traffic::{self, Packet, Proto},
};
use crate::lab::Family;

/// Runs of the program in one measurement.
const REPEAT: u32 = 1 << 18;
/// Flows for which there is room.
const ROOM: u32 = 1 << 10;
/// The flow that is established, and one that is not.
const FLOW: u32 = 7;
const OTHER: u32 = 8;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// Where a frame is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Ingress,
    Egress,
}

struct Case {
    id: &'static str,
    hook: Hook,
    what: (Family, Proto),
    /// Of the established flow; else a first packet that no rule accepts.
    established: bool,
}

const fn case(id: &'static str, hook: Hook, family: Family, proto: Proto) -> Case {
    Case {
        id,
        hook,
        what: (family, proto),
        established: true,
    }
}

const CASES: [Case; 10] = [
    case("prog_tcp_est_ns", Hook::Ingress, Family::V4, Proto::Tcp),
    case("prog_tcp_est_v6_ns", Hook::Ingress, Family::V6, Proto::Tcp),
    case("prog_udp_est_ns", Hook::Ingress, Family::V4, Proto::Udp),
    case("prog_udp_est_v6_ns", Hook::Ingress, Family::V6, Proto::Udp),
    case(
        "prog_egress_tcp_est_ns",
        Hook::Egress,
        Family::V4,
        Proto::Tcp,
    ),
    case(
        "prog_egress_tcp_est_v6_ns",
        Hook::Egress,
        Family::V6,
        Proto::Tcp,
    ),
    case(
        "prog_egress_udp_est_ns",
        Hook::Egress,
        Family::V4,
        Proto::Udp,
    ),
    case(
        "prog_egress_udp_est_v6_ns",
        Hook::Egress,
        Family::V6,
        Proto::Udp,
    ),
    Case {
        established: false,
        ..case("prog_tcp_refused_ns", Hook::Ingress, Family::V4, Proto::Tcp)
    },
    Case {
        established: false,
        ..case("prog_udp_refused_ns", Hook::Ingress, Family::V4, Proto::Udp)
    },
];

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    CASES.iter().map(|case| case.id.to_owned()).collect()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails, or a program judges otherwise than it should.
pub fn run(bench: &mut Bench) -> Result<()> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| bench.wants(case.id)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    bench.say("the programs by themselves");
    let field = Field::new(Mode::HostPinhole, ROOM)?;
    let rig = Rig::new(&field)?;
    for family in Family::BOTH {
        for proto in [Proto::Udp, Proto::Tcp] {
            rig.establish((family, proto))?;
        }
    }
    let mut costs = vec![Vec::new(); cases.len()];
    for round in 0..=bench.runs {
        for (case, costs) in cases.iter().zip(&mut costs) {
            bench.say(&format!("{}: round {round} of {}", case.id, bench.runs));
            let cost = rig.cost(case)?;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    for (case, costs) in cases.iter().zip(&costs) {
        bench.add(Metric::of(case.id, "ns", costs));
    }
    Ok(())
}

/// The object of the instance in the middle a second time, over the same maps.
struct Rig<'a> {
    field: &'a Field,
    programs: Ebpf,
    empty: Ebpf,
}

impl<'a> Rig<'a> {
    fn new(field: &'a Field) -> Result<Self> {
        let firewall = field.firewall().context("no pinhole")?;
        let programs = load(&firewall.pins())?;
        let mut empty = Ebpf::load(&traffic::object()?)?;
        traffic::xdp(&mut empty, "pass")?.load()?;
        let pass_on = empty.program_mut("pass_on").context("pass_on")?;
        let pass_on: &mut SchedClassifier = pass_on.try_into()?;
        pass_on.load()?;
        Ok(Self {
            field,
            programs,
            empty,
        })
    }

    /// Runs what makes a flow an established one.
    fn establish(&self, what: (Family, Proto)) -> Result<()> {
        self.field.middle().within(|| {
            for packet in opening(what.1) {
                let (hook, passes) = if packet.reply {
                    (Hook::Egress, TC_ACT_UNSPEC)
                } else {
                    (Hook::Ingress, XDP_PASS)
                };
                let frame = self.field.frame(what, &packet, FLOW, true);
                let verdict = self.judge(hook, &frame, 1)?;
                ensure!(verdict == passes, "{what:?} {packet:?}: {verdict}");
            }
            Ok(())
        })?
    }

    fn judge(&self, hook: Hook, frame: &[u8], times: u32) -> Result<u32> {
        match hook {
            Hook::Ingress => {
                let program = self.programs.program(programs::INGRESS);
                let program: &Xdp = program.context("no ingress")?.try_into()?;
                self.run(program, hook, frame, times)
            }
            Hook::Egress => {
                let program = self.programs.program(programs::EGRESS);
                let program: &SchedClassifier = program.context("no egress")?.try_into()?;
                self.run(program, hook, frame, times)
            }
        }
    }

    fn pass(&self, hook: Hook, frame: &[u8], times: u32) -> Result<u32> {
        match hook {
            Hook::Ingress => {
                let program: &Xdp = self.empty.program("pass").context("pass")?.try_into()?;
                self.run(program, hook, frame, times)
            }
            Hook::Egress => {
                let program = self.empty.program("pass_on").context("pass_on")?;
                let program: &SchedClassifier = program.try_into()?;
                self.run(program, hook, frame, times)
            }
        }
    }

    fn run<P>(&self, program: &P, hook: Hook, frame: &[u8], times: u32) -> Result<u32>
    where
        P: for<'o> TestRun<Opts<'o> = TestRunOptions<'o>, Result = TestRunResult>,
    {
        let index = self.field.ifindex();
        // `struct xdp_md` and the beginning of `struct __sk_buff`.
        let xdp = [0, frame.len() as u32, 0, index, 0, 0];
        let mut skb = [0_u32; 12];
        skb[10] = index;
        let context: &[u32] = match hook {
            Hook::Ingress => &xdp,
            Hook::Egress => &skb,
        };
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::cast_slice(context)),
            repeat: times,
            ..TestRunOptions::new()
        })?;
        Ok(result.return_value)
    }

    /// CPU time of a run, less that of an empty program, ns.
    fn cost(&self, case: &Case) -> Result<f64> {
        let reply = case.hook == Hook::Egress;
        let (packet, flow, wanted) = if case.established {
            let passes = if reply { TC_ACT_UNSPEC } else { XDP_PASS };
            (established(case.what.1, reply), FLOW, passes)
        } else {
            (opening(case.what.1)[0], OTHER, XDP_DROP)
        };
        let frame = self.field.frame(case.what, &packet, flow, case.established);
        self.field.middle().within(|| {
            traffic::pin(0)?;
            let began = thread_cpu_ns();
            let verdict = self.judge(case.hook, &frame, REPEAT)?;
            let full = thread_cpu_ns() - began;
            ensure!(verdict == wanted, "{}: {verdict}", case.id);
            let began = thread_cpu_ns();
            self.pass(case.hook, &frame, REPEAT)?;
            let empty = thread_cpu_ns() - began;
            Ok((full as f64 - empty as f64) / f64::from(REPEAT))
        })?
    }
}

/// Loads the programs over the maps that are pinned in a directory.
fn load(pins: &Path) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &(ProgramLog::Off as u8), true);
    for entry in fs::read_dir(pins)? {
        let (name, path) = {
            let entry = entry?;
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        };
        // Links and programs are pinned there, too.
        if let Ok(info) = MapInfo::from_pin(&path) {
            let name: &'static str = name.leak();
            loader.map_max_entries(name, info.max_entries());
            loader.map_pin_path(name, path);
        }
    }
    let mut ebpf = loader.load(OBJECT)?;
    traffic::xdp(&mut ebpf, programs::INGRESS)?.load()?;
    let egress = ebpf.program_mut(programs::EGRESS).context("no egress")?;
    let egress: &mut SchedClassifier = egress.try_into()?;
    egress.load()?;
    Ok(ebpf)
}

/// A packet of the established flow, in either direction.
fn established(proto: Proto, reply: bool) -> Packet {
    let packet = data();
    if !reply {
        return packet;
    }
    let (seq, ack) = match proto {
        Proto::Udp => (0, 0),
        Proto::Tcp => (packet.ack, packet.seq),
    };
    Packet {
        reply,
        seq,
        ack,
        ..packet
    }
}
