//! The kernel's side of the comparison.

use std::{collections::HashSet, fs, io, net::IpAddr};

use firewall_common::{
    tcp::{State, generic},
    wire::proto,
};

use super::Scope;
use crate::{
    bpf::{maps::FlowRow, vlan_children},
    netlink::{
        conntrack::{self, Entry},
        route::{self, Route, Routes},
    },
    render::Now,
};

/// Where nf_conntrack says its settings, in the namespace of the reader.
const SETTINGS: &str = "/proc/sys/net/netfilter";

/// Does nf_conntrack track here?
#[derive(Clone, Debug, PartialEq)]
pub enum Tracking {
    /// The kernel has no nf_conntrack, or none that can be asked.
    Absent,
    /// It is there, and tracks nothing: no rule of this namespace asks for it,
    /// or no packet has come since.
    Idle,
    /// It tracks these.
    Active(Vec<Entry>),
}

/// Asks nf_conntrack.
///
/// # Errors
/// What the kernel says to the dump.
pub fn look() -> io::Result<Tracking> {
    Ok(match conntrack::entries()? {
        None => Tracking::Absent,
        Some(entries) if entries.is_empty() => Tracking::Idle,
        Some(entries) => Tracking::Active(entries),
    })
}

/// Routes, guarded interfaces and the kernel's time-outs.
pub struct Surroundings {
    routes: Routes,
    guarded: HashSet<u32>,
    now: Now,
}

impl Surroundings {
    /// Of this network namespace, where the interfaces `guarded` have programs.
    ///
    /// # Errors
    /// Those of netlink.
    pub fn new(guarded: impl IntoIterator<Item = u32>, now: Now) -> io::Result<Self> {
        let mut guarded: HashSet<u32> = guarded.into_iter().collect();
        let links = route::links()?;
        let children = vlan_children::find(&links, |index| guarded.contains(&index));
        let children: Vec<u32> = children.iter().map(|(link, _)| link.index).collect();
        guarded.extend(children);
        Ok(Self {
            routes: Routes::open()?,
            guarded,
            now,
        })
    }

    fn leads_out(&mut self, address: IpAddr) -> io::Result<bool> {
        Ok(match self.routes.to(address)? {
            Route::Out(index) => self.guarded.contains(&index),
            Route::Local | Route::None => false,
        })
    }
}

impl Scope for Surroundings {
    fn is_guarded(&mut self, entry: &Entry) -> io::Result<bool> {
        let (original, reply) = (entry.tracked.original, entry.tracked.reply);
        for end in [original.src, original.dst, reply.src, reply.dst] {
            if self.leads_out(end.ip())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn timeout_s(&self, protocol: u8, state: u8) -> Option<u64> {
        let file = setting(protocol, state)?;
        let text = fs::read_to_string(format!("{SETTINGS}/nf_conntrack_{file}")).ok()?;
        text.trim().parse().ok()
    }

    fn idle_s(&self, row: &FlowRow) -> f64 {
        self.now.since_tick(row.flow.seen)
    }
}

/// The setting that holds the kernel's time-out of a connection.
fn setting(protocol: u8, state: u8) -> Option<&'static str> {
    Some(match protocol {
        proto::TCP => match State::try_from(state).ok()? {
            State::None => return None,
            State::SynSent | State::SynSent2 => "tcp_timeout_syn_sent",
            State::SynRecv => "tcp_timeout_syn_recv",
            State::Established => "tcp_timeout_established",
            State::FinWait => "tcp_timeout_fin_wait",
            State::CloseWait => "tcp_timeout_close_wait",
            State::LastAck => "tcp_timeout_last_ack",
            State::TimeWait => "tcp_timeout_time_wait",
            State::Close => "tcp_timeout_close",
        },
        proto::UDP if state == generic::REPLIED => "udp_timeout_stream",
        proto::UDP => "udp_timeout",
        proto::ICMP => "icmp_timeout",
        proto::ICMPV6 => "icmpv6_timeout",
        _ => "generic_timeout",
    })
}
