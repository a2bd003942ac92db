//! Runs packets through the private programs, and gathers what decided.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use anyhow::{Context as _, bail, ensure};
use firewall_common::{
    abi::{
        Config, DataFlow, ExpectKey, Expectation, Explain, FlowKey6, Iface, Rule, config_flags,
        heartbeat, iface_flags,
    },
    time::Tick,
    verdict::{DropReason, PassReason, Verdict},
    wire::Headers,
};

use super::{
    frame::{self, Packet},
    place::{Place, Places, Wish},
    seeds::{self, Seeds},
};
use crate::bpf::{
    Instance, claim,
    detach::{self, tcx_pin, xdp_pin},
    lookup::{Found, Lookup},
    maps::{FlowRow, Names, Pinned},
    private::{Hook, Private},
    sys,
};

/// An attached instance, to be asked about.
pub struct Judge {
    pinned: Pinned,
    lookup: Lookup,
    ifaces: Vec<(u32, Iface)>,
    config: Config,
}

/// What is known of a packet.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it was captured, if it was: seconds since 1970.
    pub at_s: Option<f64>,
    /// Bytes that the capture had of it, and that it has.
    pub captured: (usize, usize),
    /// Its headers, if it is an IP packet.
    pub headers: Option<Headers>,
    /// Source and destination, if it is an IP packet whose headers are refused.
    pub ends: Option<[IpAddr; 2]>,
    /// Where it was asked for.
    pub place: Place,
    /// The judgement, or why there is none.
    pub judged: Result<Judged, String>,
}

/// How a packet was judged.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// What becomes of it.
    pub verdict: Verdict,
    /// What the program noted.
    pub notes: Explain,
    /// The rule that matched.
    pub rule: Option<Rule>,
    /// Its flow before, if it had a live one.
    pub before: Option<FlowRow>,
    /// Its flow after it.
    pub after: Option<FlowRow>,
    /// Whose data connection the one or the other is.
    pub parents: [Option<DataFlow>; 2],
    /// The pinhole for it, as it was before.
    pub expectation: Option<(ExpectKey, Expectation)>,
    /// Into how many segments it was cut; the last one that was judged counts.
    pub segments: usize,
}

/// Whose data connection the flow is.
fn parent(private: &mut Private, row: Option<&FlowRow>) -> anyhow::Result<Option<DataFlow>> {
    let Some(row) = row else {
        return Ok(None);
    };
    let data = private.data_flow(&row.key)?;
    Ok(data.filter(|data| data.incarnation == row.state().incarnation()))
}

impl Judge {
    /// Opens an instance that guards this network namespace.
    ///
    /// # Errors
    ///
    /// Not attached, another version, another network namespace.
    pub fn open(instance: &Instance) -> anyhow::Result<Self> {
        let pinned = Pinned::open(instance)?;
        let guarded = pinned.heartbeat()?[heartbeat::NETNS as usize];
        ensure!(
            claim::netns_inode()? == guarded,
            "instance `{instance}` guards another network namespace (inode {guarded}): run \
             `pinhole why` in that one, with `nsenter --net`"
        );
        Ok(Self {
            lookup: Lookup::open(&pinned)?,
            ifaces: pinned.ifaces()?,
            config: pinned.config()?,
            pinned,
        })
    }

    /// Names of its zones and rules.
    ///
    /// # Errors
    ///
    /// Those of the maps.
    pub fn names(&self) -> anyhow::Result<Names> {
        Ok(self.pinned.names()?)
    }

    /// Does it only count what it would drop?
    #[must_use]
    pub const fn in_shadow(&self) -> bool {
        self.config.flags & config_flags::SHADOW != 0
    }

    /// The live flow of a packet with these headers.
    ///
    /// # Errors
    ///
    /// Those of the maps.
    pub fn flow(&self, headers: &Headers) -> anyhow::Result<Option<FlowRow>> {
        let Some(key) = seeds::flow_key(&[], headers) else {
            return Ok(None);
        };
        Ok(self.pinned.flow(&key)?)
    }

    /// Judges packets in their order, each as the ones before left the tables.
    ///
    /// # Errors
    ///
    /// Programs that differ from those of this binary; those of the maps and of
    /// BPF_PROG_RUN.
    pub fn ask(&self, packets: &[Packet], wish: &Wish) -> anyhow::Result<Vec<Answer>> {
        let mut places = Places::new(&self.ifaces, wish)?;
        let mut seeds = Seeds::default();
        let mut asked = Vec::with_capacity(packets.len());
        let mut hooks = BTreeSet::new();
        for packet in packets {
            let headers = packet.headers().ok().flatten();
            let place = places.of(packet, headers.as_ref())?;
            if let Some(headers) = &headers {
                seeds.add(&packet.frame, headers);
            }
            hooks.insert(place.hook);
            asked.push((packet, headers, place));
        }
        let instance = self.pinned.instance();
        let mut private = Private::load(Some(instance), seeds.flows(), &hooks)?;
        self.same_programs(&private, asked.iter().map(|(.., place)| place))?;
        seeds
            .copy(&self.lookup, &mut private)
            .map_err(anyhow::Error::from_boxed)
            .context("copying the flows concerned")?;
        private.put_tier_counts(&self.pinned.tier_counts()?)?;
        asked
            .into_iter()
            .map(|(packet, headers, place)| {
                let judged = match packet.frames(self.is_bare(place.index)) {
                    Ok(frames) => Ok(self.judge(&mut private, &frames, &place)?),
                    Err(why) => Err(why),
                };
                let refused = headers.is_none();
                Ok(Answer {
                    ends: refused.then(|| frame::ends(&packet.frame)).flatten(),
                    at_s: packet.at.map(|at| at.as_secs_f64()),
                    captured: packet.captured,
                    headers,
                    place,
                    judged,
                })
            })
            .collect()
    }

    /// Do packets of the interface begin with IP?
    fn is_bare(&self, index: u32) -> bool {
        let mut ifaces = self.ifaces.iter();
        ifaces.any(|(at, iface)| *at == index && iface.flags & iface_flags::NO_ETHERNET != 0)
    }

    /// The segments of a packet; a dropped one is the last.
    fn judge(
        &self,
        private: &mut Private,
        frames: &[Vec<u8>],
        place: &Place,
    ) -> anyhow::Result<Judged> {
        let mut last = None;
        for frame in frames {
            let one = self.judge_one(private, frame, place, frames.len())?;
            let ends = matches!(one.verdict, Verdict::Drop(_));
            last = Some(one);
            if ends {
                break;
            }
        }
        last.context("a packet without a frame")
    }

    fn judge_one(
        &self,
        private: &mut Private,
        frame: &[u8],
        place: &Place,
        segments: usize,
    ) -> anyhow::Result<Judged> {
        let headers = frame::headers(frame).ok().flatten();
        let key = headers.as_ref().and_then(|h| seeds::flow_key(frame, h));
        let expect = headers.as_ref().and_then(seeds::expect_key);
        let before = self.row(private, key)?;
        let parent_before = parent(private, before.as_ref())?;
        let expectation = match expect {
            Some(key) => private.expectation(&key)?.map(|value| (key, value)),
            None => None,
        };
        let notes = private.run(place.hook, place.index, place.came_in_by, frame)?;
        let verdict = verdict(notes.outcome).with_context(|| {
            format!("the program gave outcome {}, which is none", notes.outcome)
        })?;
        let after = self.row(private, key)?;
        Ok(Judged {
            verdict,
            notes,
            rule: self.lookup.rule(notes.rule)?,
            before,
            after,
            parents: [parent_before, parent(private, after.as_ref())?],
            expectation,
            segments,
        })
    }

    /// What the programs take for a flow.
    fn row(&self, private: &mut Private, key: Option<FlowKey6>) -> anyhow::Result<Option<FlowRow>> {
        let Some(key) = key else {
            return Ok(None);
        };
        let now = Tick::from_ns(sys::monotonic_ns());
        let row = private.flow(&key)?.map(|Found { table, flow }| FlowRow {
            key,
            flow,
            tier: table.tier(),
            expires: flow.expires(key.proto(), &self.config.timeouts),
        });
        Ok(row.filter(|row| row.is_live(now)))
    }

    /// What is attached must be what is loaded here: the kernel's digests of
    /// their instructions are compared.
    fn same_programs<'a>(
        &self,
        private: &Private,
        places: impl Iterator<Item = &'a Place>,
    ) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        for place in places {
            if !seen.insert((place.index, place.hook)) {
                continue;
            }
            let ours = private.tag(place.hook)?;
            let hook = place.hook.name();
            let Some(theirs) = self.attached(place)? else {
                bail!(
                    "no program of instance `{}` is on {} at {hook}: see `pinhole status`",
                    self.pinned.instance(),
                    place.name
                );
            };
            ensure!(
                ours == theirs,
                "the program on {} at {hook} (tag {theirs:016x}) is another than that of this \
                 pinhole (tag {ours:016x}), and could judge otherwise: ask the pinhole that \
                 attached it, or replace it with `{}`",
                place.name,
                self.pinned.instance().command("run")
            );
        }
        Ok(())
    }

    /// Digest of the program that is attached there.
    fn attached(&self, place: &Place) -> anyhow::Result<Option<u64>> {
        let instance = self.pinned.instance();
        let id = match place.hook {
            Hook::Ingress => detach::pinned_program(&instance.pin(&xdp_pin(&place.name)))?,
            Hook::Egress => match detach::pinned_program(&instance.pin(&tcx_pin(&place.name)))? {
                None => detach::filter_program(place.index)?,
                id => id,
            },
        };
        id.map_or(Ok(None), |id| {
            let programs = aya::programs::loaded_programs();
            let ours = programs.filter_map(Result::ok).find(|info| info.id() == id);
            Ok(ours.map(|info| info.tag()))
        })
    }
}

/// The verdict with this [`Verdict::index`].
fn verdict(index: u32) -> Option<Verdict> {
    let pass = PassReason::ALL.iter().map(|reason| Verdict::Pass(*reason));
    let drop = DropReason::ALL.iter().map(|reason| Verdict::Drop(*reason));
    pass.chain(drop).find(|verdict| verdict.index() == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_its_number() {
        for reason in DropReason::ALL {
            assert_eq!(verdict(reason.index()), Some(Verdict::Drop(*reason)));
        }
        for reason in PassReason::ALL {
            assert_eq!(verdict(reason.index()), Some(Verdict::Pass(*reason)));
        }
        assert_eq!(verdict(0), None);
    }
}
