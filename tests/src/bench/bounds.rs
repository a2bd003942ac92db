//! What figures mean in words: what a goal is about, and what keeps a figure from it.

use super::{metric::show, report::Report};

/// What a figure with a goal is.
pub(super) fn what(id: &str) -> &'static str {
    match id {
        "fwd_est_1k_vs_nft" => "established packets, XDP forward, 1k flows, against nftables",
        "fwd_est_32k_vs_nft" => "established packets, XDP forward, 32k flows, against nftables",
        "fwd_est_1m_vs_nft" => {
            "established packets, XDP forward, a million flows, against nftables"
        }
        "fwd_est_1k_vs_ceiling" => {
            "established packets, XDP forward, 1k flows, against a redirect that tracks nothing"
        }
        "new_flows_vs_nft" => "nothing but new flows, against nftables",
        "pass_est_1k_vs_nft" => "established packets, forwarded by the kernel, against nftables",
        "prog_tcp_est_ns" => "the program on an established TCP segment",
        "rules_10k_vs_10" => "cost of a new flow with 10,000 rules, against ten",
        "bytes_per_flow" => "memory of an IPv4 flow",
        "bytes_per_flow_v6" => "memory of an IPv6 flow",
        "ftp_rate_vs_kernel" => "FTP transfers a second, against nf_conntrack_ftp",
        "ftp_setup_p99_vs_kernel" => "set-up of a data connection, p99, against nf_conntrack_ftp",
        "list_1m_vs_conntrack" => "`flows list` of a million flows, against `conntrack -L`",
        "collector_1m_core_share" => "the collector with a million flows",
        "collector_1m_pause_ms" => "the collector's longest pause with a million flows",
        "agent_rest_cpu" => "the agent at rest",
        "agent_rest_rss_mib" => "resident memory of the agent at rest, besides maps",
        _ => "",
    }
}

/// What keeps a figure from its goal; none where nothing that was measured tells.
pub(super) fn of(report: &Report, id: &str) -> Option<String> {
    let value = |id: &str| report.value(id);
    let ns = |mode: &str| report.value(&format!("cpu_ns_{mode}_est_1k"));
    Some(match id {
        "pass_est_1k_vs_nft" => format!(
            "the kernel's forwarding is most of it. Behind an XDP program that does nothing, \
             without a rule, it comes to {} times nftables (`open_est_1k_vs_nft`), which \
             nobody who leaves forwarding to the kernel exceeds: {:.0} ns a packet, to which \
             nftables adds {:.0} ns and pinhole {:.0} ns.",
            show(value("open_est_1k_vs_nft")),
            ns("forward")?,
            ns("nft")? - ns("forward")?,
            ns("pass")? - ns("forward")?,
        ),
        "fwd_est_1k_vs_ceiling" => {
            let (ceiling, goal) = (ns("ceiling")?, goal(report, id)?);
            format!(
                "the redirect takes {ceiling:.0} ns a packet, so that the goal leaves {:.0} ns for \
                 a routing look-up, the flow's entry and its state, the TTL and counters; \
                 pinhole takes {:.0} ns for them, of which {} ns are its program on one such \
                 packet by itself, without routing (`prog_udp_est_ns`). A program that looks up \
                 one entry in an LRU hash and redirects takes {:.0} ns for that alone, and comes \
                 to {} of the ceiling (`lookup_est_1k_vs_ceiling`).",
                ceiling / goal - ceiling,
                ns("fwd")? - ceiling,
                show(value("prog_udp_est_ns")),
                ns("lookup")? - ceiling,
                show(value("lookup_est_1k_vs_ceiling")),
            )
        }
        "fwd_est_1k_vs_nft" | "fwd_est_32k_vs_nft" | "fwd_est_1m_vs_nft" => {
            let load = id.strip_prefix("fwd_")?.strip_suffix("_vs_nft")?;
            let cost = |mode: &str| Some(1000.0 / report.value(&format!("mpps_{mode}_{load}"))?);
            let (ceiling, nft, goal) = (cost("ceiling")?, cost("nft")?, goal(report, id)?);
            format!(
                "what is the same for all. nftables takes {nft:.0} ns a packet, so that the goal \
                 is {:.0} ns, and the redirect without tracking takes {ceiling:.0} of them \
                 ({:.1} times nftables is all that this machine can show); pinhole takes {:.0} ns \
                 more than it. Without what the redirect takes, which is the generator, the \
                 wires and the sink, it is {:.1} times as fast.",
                nft / goal,
                nft / ceiling,
                cost("fwd")? - ceiling,
                (nft - ceiling) / (cost("fwd")? - ceiling),
            )
        }
        "new_flows_vs_nft" => {
            let cost = |mode: &str| Some(1000.0 / report.value(&format!("mpps_{mode}_new"))?);
            let (insert, nft) = (cost("insert")?, cost("nft")?);
            format!(
                "an insertion into an LRU hash. nftables takes {nft:.0} ns for a new flow, so that \
                 the goal is {:.0} ns. An XDP program that makes one such entry and redirects, and \
                 does nothing else, takes {insert:.0} ns ({} times nftables, \
                 `insert_new_vs_nft`); pinhole takes {:.0} ns more for the look-ups that find \
                 no flow, the rules, the entry's contents and the route.",
                nft / goal(report, id)?,
                show(Some(value("insert_new_vs_nft")?)),
                cost("fwd")? - insert,
            )
        }
        "ftp_rate_vs_kernel" => format!(
            "the way to the agent and back, at two firewalls. The kernel's helper reads a reply \
             where the packet is; pinhole's does in user space, for which a thread must wake up. \
             {} transfers a second against {}.",
            show(Some(value("ftp_rate_pinhole")?)),
            show(Some(value("ftp_rate_kernel")?)),
        ),
        "ftp_setup_p99_vs_kernel" => format!(
            "the way to the agent and back, at two firewalls. A SYN that comes before its pinhole is held until the agent has read the \
             reply: up to {} µs in 99 of 100 cases, where the kernel takes {} µs.",
            show(Some(value("ftp_setup_p99_us_pinhole")?)),
            show(Some(value("ftp_setup_p99_us_kernel")?)),
        ),
        "agent_rest_cpu" => format!(
            "its heartbeat, which the programs look at, and the collector's look at the tables: \
             {:.2} ms of CPU a second.",
            value(id)? * 10.0
        ),
        _ => return None,
    })
}

/// What is to be said of figures without a goal.
pub(super) fn of_part(report: &Report, title: &str) -> Option<String> {
    if title != "A TCP stream" {
        return None;
    }
    let gbit = |mode: &str| report.value(&format!("tcp_gbit_{mode}_offloads_on"));
    let (free, open, pass) = (gbit("forward")?, gbit("open")?, gbit("pass")?);
    Some(format!(
        "With offloads, a stream crosses veth wires in segments of up to 64 KiB that nobody ever \
         cuts. A native XDP program on a veth ends that, whatever it does: its packets must lie \
         in one buffer, and so the kernel turns segmentation offload off. An empty program \
         takes the stream from {} to {} Gbit/s; pinhole comes to {} Gbit/s. A network card cuts and \
         merges segments beyond its XDP program, and loses nothing of it.",
        show(Some(free)),
        show(Some(open)),
        show(Some(pass)),
    ))
}

/// The number in its goal.
fn goal(report: &Report, id: &str) -> Option<f64> {
    let metric = report.metrics.iter().find(|metric| metric.id == id)?;
    let goal = metric.goal.as_deref()?;
    goal.split_once(' ')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metric::GOALS;

    #[test]
    fn every_goal_is_in_words() {
        for (id, _) in GOALS {
            assert!(!what(id).is_empty(), "{id}");
        }
    }
}
