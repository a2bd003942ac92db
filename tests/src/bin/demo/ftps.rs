//! The second act: FTPS, whose control connection no firewall can read.

use std::time::Duration;

use anyhow::{Context as _, Result};
use firewall_tests::{
    lab::{
        Family, Guard, Lab, Node, Place,
        kernel::NftFirewall,
        pinhole::{Attach, Firewall, config},
        place::Guarded,
        process,
        server::{self, FtpServer, PASSWORD, USER},
    },
    narrator::Narrator,
};
use serde_json::Value;

/// Long enough to see that nothing comes, and for the second retransmission of a SYN.
const HANGS: Duration = Duration::from_secs(5);
/// What proftpd is told to use in the lab.
const PORTS: &str = "50000-50099";

const CURL: [&str; 3] = ["--ssl-reqd", "--insecure", "--silent"];
const CCC: &str = "--ftp-ssl-ccc";

/// Tells it.
pub(crate) fn tell(n: &mut Narrator) -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start(&lab, server::Kind::Proftpd)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::BothEnds, true)?;

    n.act("FTPS: the log-in works, the listing hangs, and this time it is said why");
    n.say("The server is proftpd with TLS. The helper is on at both ends, as before.");
    let listed = lists(&lab, &[])?;
    n.step(
        "curl --ssl-reqd logs in, and the listing hangs",
        listed.logged_in && !listed.done,
        listed.seen(),
    );
    let near = &guarded.pinholes[0];
    let session = explained(near, "dropped-here");
    show(n, near, &lab)?;
    n.step(
        "`ftp explain` ties the dropped SYN to the encrypted session",
        session
            .as_ref()
            .is_ok_and(|s| s["ccc"] == "unknown" && remedies(s).len() == 4),
        match &session {
            Ok(session) => format!("remedies: {}", remedies(session).join(", ")),
            Err(error) => format!("{error:#}"),
        },
    );

    n.act("Remedy one: CCC, the control connection in clear again after log-in");
    let listed = lists(&lab, &[CCC])?;
    n.step(
        format!("curl --ssl-reqd {CCC} lists, through both firewalls"),
        listed.done,
        listed.seen(),
    );

    n.act("Remedy two: a fixed range between these two hosts, for good");
    let range = format!(
        "[ftp]\nfixed-range = [{{ clients = \"{}\", servers = \"{}\", ports = \"{PORTS}\" }}]\n",
        lab.client_ip(Family::V4),
        lab.server_ip(Family::V4)
    );
    n.show("cat >> policy.toml    # at both ends", &range);
    with_policy(&mut guarded, &range)?;
    let listed = lists(&lab, &[])?;
    n.step("curl --ssl-reqd lists", listed.done, listed.seen());

    n.act("Remedy three: a session range, open while the session lives and no longer");
    let range = session_range(&lab);
    n.show(
        "cat >> policy.toml    # at both ends, in place of that",
        &range,
    );
    with_policy(&mut guarded, &range)?;
    let listed = lists(&lab, &[])?;
    n.step("curl --ssl-reqd lists", listed.done, listed.seen());
    let tried = lab.ns(Node::Client).connect(
        std::net::SocketAddr::new(lab.server_ip(Family::V4), 50_000),
        Duration::from_secs(2),
    )?;
    n.step(
        "And once it has ended, the same ports are closed",
        tried
            .as_ref()
            .is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut),
        tried.map_or_else(|e| e.to_string(), |_| "connected".into()),
    );
    drop(guarded);

    n.act("The firewall at the other end is somebody else's");
    beyond(n, &lab, &range)
}

/// pinhole at the client's end lets the data connection out; the kernel's firewall
/// at the server's end does not let it in.
fn beyond(n: &mut Narrator, lab: &Lab, range: &str) -> Result<()> {
    n.say("fw-b is nftables with nf_conntrack_ftp now. fw-a keeps its session range.");
    let policy = format!("{}{range}", config::gateway(Node::FwA, true));
    let near = Firewall::start(lab, Node::FwA, Some(&policy), Attach::default())?;
    let _far = NftFirewall::start(lab.ns(Node::FwB), true)?;
    let listed = lists(lab, &[])?;
    n.step(
        "curl --ssl-reqd logs in, and the listing hangs",
        listed.logged_in && !listed.done,
        listed.seen(),
    );
    let session = explained(&near, "passed-no-reply");
    show(n, &near, lab)?;
    n.step(
        "`ftp explain` says that the drop is beyond, and whom to ask",
        session.as_ref().is_ok_and(|s| remedies(s) == ["beyond"]),
        session.map_or_else(|e| format!("{e:#}"), |s| remedies(&s).join(", ")),
    );
    Ok(())
}

/// What came of a listing.
struct Listed {
    logged_in: bool,
    done: bool,
    error: String,
}

impl Listed {
    fn seen(&self) -> String {
        let login = if self.logged_in {
            "accepted"
        } else {
            "refused"
        };
        let listing = match (self.done, self.error.as_str()) {
            (true, _) => "received".to_owned(),
            (false, "") => "never came".to_owned(),
            (false, error) => format!("never came: {error}"),
        };
        format!("log-in {login}, listing {listing}")
    }
}

fn lists(lab: &Lab, more: &[&str]) -> Result<Listed> {
    let mut curl = lab.ns(Node::Client).command("curl");
    curl.args(CURL)
        .args(["--show-error", "--verbose", "--disable"])
        .args(["--user", &format!("{USER}:{PASSWORD}")])
        .args(["--max-time", &HANGS.as_secs().to_string()])
        .args(more)
        .arg(format!("ftp://{}/", lab.server_ip(Family::V4)));
    let output = process::run(&mut curl, HANGS * 4)?;
    let error = output.stderr.lines().rev().find(|l| l.starts_with("curl:"));
    Ok(Listed {
        logged_in: output.stderr.contains("< 230"),
        done: output.success() && output.stdout.contains("payload.bin"),
        error: error.unwrap_or_default().to_owned(),
    })
}

fn session_range(lab: &Lab) -> String {
    format!(
        "[[ftp.session-range]]\nclients = \"{}\"\nservers = \"{}\"\nports = \"{PORTS}\"\nmax = 2\n",
        lab.client_ip(Family::V4),
        lab.server_ip(Family::V4)
    )
}

/// The same policies with something added.
fn with_policy(guarded: &mut Guarded, more: &str) -> Result<()> {
    let nodes = Place::BothEnds.nodes();
    for (firewall, &node) in guarded.pinholes.iter_mut().zip(nodes) {
        firewall.stop_agent();
        let policy = config::gateway(node, true);
        firewall.start_agent_with(&format!("{policy}{more}"), &[])?;
    }
    Ok(())
}

/// The last session that has a data connection of this outcome.
fn explained(firewall: &Firewall, outcome: &str) -> Result<Value> {
    let found = process::await_some(outcome, HANGS * 2, || {
        let all = firewall.json(&["ftp", "explain"]).ok()?;
        let sessions = all.as_array()?.iter();
        let has = |session: &&Value| {
            let data = session["data"].as_array();
            data.is_some_and(|all| all.iter().any(|data| data["outcome"] == outcome))
        };
        sessions.rev().find(has).cloned()
    });
    found.context("`ftp explain` knows nothing of it")
}

fn remedies(session: &Value) -> Vec<&str> {
    let all = session["remedies"].as_array().map(Vec::as_slice);
    let all = all.unwrap_or_default().iter();
    all.filter_map(|remedy| remedy["remedy"].as_str()).collect()
}

fn show(n: &Narrator, firewall: &Firewall, lab: &Lab) -> Result<()> {
    let host = lab.client_ip(Family::V4).to_string();
    let output = firewall.cli(&["ftp", "explain", &host])?;
    n.show(
        &format!("pinhole ftp explain {host}    # on fw-a"),
        &format!("{}{}", output.stdout, output.stderr),
    );
    Ok(())
}
