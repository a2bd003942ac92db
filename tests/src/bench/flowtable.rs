//! Beside the fast path: the kernel's own, where it has one.

use anyhow::{Result, ensure};

use super::{
    Bench, TIME, TURNS,
    field::{Field, Mode, data},
    metric::Metric,
    traffic::{Amount, Flows, Proto, cpus},
    why,
};
use crate::lab::Family;

/// Its only id.
pub const ID: &str = "fwd_est_1k_vs_flowtable";
const UDP4: (Family, Proto) = (Family::V4, Proto::Udp);
const FLOWS: u32 = 1 << 10;

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    vec![ID.to_owned()]
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails. That the kernel has no flow tables is a result.
pub fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(ID) {
        return Ok(());
    }
    bench.say("setting up: the kernel's flow table");
    let mut peer = match Field::new(Mode::Flowtable, FLOWS) {
        Ok(field) => field,
        Err(error) => {
            let why = why(&error).map_or(String::new(), |why| format!(": {why}"));
            let why = format!("this kernel has no flow tables{why}");
            bench.add(Metric::missing(ID, "x", why));
            return Ok(());
        }
    };
    let mut own = Field::new(Mode::Fast, FLOWS)?;
    for field in [&mut own, &mut peer] {
        field.establish(UDP4, FLOWS)?;
    }
    let before = handled(&peer)?;
    bench.ratio(ID, [&mut own, &mut peer], |field| {
        let amount = Amount::For(TIME / TURNS, cpus());
        field.rate(UDP4, &data(), Flows::Of(FLOWS), amount)
    })?;
    let after = handled(&peer)?;
    let [left, all] = [after[0] - before[0], after[1] - before[1]];
    ensure!(
        left * 100 <= all,
        "the kernel's flow table left {left} of {all} packets to the rules"
    );
    Ok(())
}

/// Packets that the rules saw, and that came out.
fn handled(peer: &Field) -> Result<[u64; 2]> {
    Ok([peer.left_over()?, peer.seen(false)?.iter().sum()])
}
