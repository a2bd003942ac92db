//! The story of an FTP log-in that works and a listing that hangs, and of what
//! pinhole does about it: real servers and clients, a firewall at both ends.

mod ftps;

use std::{io::Read, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use firewall_tests::{
    lab::{
        Family, Guard, Lab, Node, Place,
        client::{FtpCommand, Kind, Request},
        matrix,
        pinhole::{Attach, Firewall},
        place::Guarded,
        process,
        script::Session,
        server::{self, FtpServer},
    },
    narrator::Narrator,
};

/// Long enough to see that nothing comes.
const HANGS: Duration = Duration::from_secs(3);

const PICTURE: &str = "\
   client ──── fw-a ──── net ──── fw-b ──── server
  (curl)     pinhole            pinhole    (vsftpd)";

/// Plays FTP through two firewalls and shows what the helper changes.
#[derive(Debug, Parser)]
struct Args {
    /// Break one step on purpose: the demo must then fail.
    #[arg(long, value_name = "STEP")]
    sabotage: Option<Sabotage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sabotage {
    /// The helper stays off where it should be on.
    Helper,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut narrator = Narrator::default();
    let told = tell(&mut narrator, args.sabotage);
    if let Err(error) = &told {
        narrator.step("The story goes on", false, format!("{error:#}"));
    }
    if narrator.end() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn tell(n: &mut Narrator, sabotage: Option<Sabotage>) -> Result<()> {
    n.act("Two sites, a firewall at the border of each");
    n.say(PICTURE);
    n.say(
        "Both firewalls let the client connect to port 21, and replies come back. Nothing else passes.",
    );
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Vsftpd)?;

    n.act("Without the FTP helper: the log-in works, the listing hangs");
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::BothEnds, false)?;
    listing_hangs(n, &lab, &guarded, FtpCommand::Epsv)?;
    listing_hangs(n, &lab, &guarded, FtpCommand::Port)?;
    drop(guarded);

    n.act("With the FTP helper: a transfer, stopped half way");
    n.say("The same policy. Its one rule has got a line more: helper = \"ftp\".");
    let helper = sabotage != Some(Sabotage::Helper);
    if !helper {
        n.say("(Sabotage: it has not.)");
    }
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::BothEnds, helper)?;
    let firewall = &guarded.pinholes[1];
    match half_way(n, &lab, &server, firewall) {
        Ok((session, at)) => {
            n.act("The session ends, and its pinhole with it");
            closes(n, &lab, firewall, session, at)?;
        }
        Err(error) => n.step("The transfer goes on", false, format!("{error:#}")),
    }

    n.act("Every way to negotiate a data connection, through both firewalls");
    transfers(n, &lab, &server)?;
    drop((guarded, server, lab));
    ftps::tell(n)
}

fn listing_hangs(
    n: &mut Narrator,
    lab: &Lab,
    guarded: &Guarded,
    command: FtpCommand,
) -> Result<()> {
    // Passive: the client connects, and its own firewall is the first to see
    // that. Active: the server does.
    let (firewall, who, whose) = if command.is_active() {
        (&guarded.pinholes[1], "server", "fw-b")
    } else {
        (&guarded.pinholes[0], "client", "fw-a")
    };
    let before = firewall.stats()?.dropped("policy");
    let mut request = Request::new(lab, Kind::Curl, command, Family::V4).patience(HANGS);
    request.listing = true;
    let outcome = request.run(lab)?;
    n.step(
        format!("curl logs in, agrees on {} and hangs", command.name()),
        outcome.hung_at_data() && outcome.negotiated,
        format!(
            "log-in {}, listing {}",
            if outcome.login { "accepted" } else { "refused" },
            if outcome.data {
                "received"
            } else {
                "never came"
            },
        ),
    );
    let dropped = firewall.stats()?.dropped("policy") - before;
    n.step(
        format!("{whose} dropped the {who}'s data connection"),
        dropped > 0,
        format!("{dropped} packets"),
    );
    let stats = firewall.cli(&["stats"])?.stdout;
    let line: String = stats.lines().filter(|l| l.contains("policy")).collect();
    n.show(&format!("pinhole stats    # on {whose}"), &line);
    Ok(())
}

fn transfers(n: &mut Narrator, lab: &Lab, server: &FtpServer) -> Result<()> {
    for (command, family) in matrix::cells() {
        let request = Request::new(lab, Kind::Curl, command, family).patience(HANGS * 2);
        let outcome = request.run(lab)?;
        let direction = if command.is_active() {
            "active"
        } else {
            "passive"
        };
        let so = outcome.is(server.payload());
        let seen = if so {
            format!(
                "{} MB in {:.2} s, SHA-256 matches",
                outcome.bytes >> 20,
                outcome.elapsed.as_secs_f64()
            )
        } else {
            outcome.error.unwrap_or_else(|| "another file came".into())
        };
        let told = format!("{} ({direction}) over IP{}", command.name(), family.name());
        n.step(told, so, seen);
    }
    Ok(())
}

/// Stops half way through a passive transfer and shows the tables of the
/// firewall at the server's end.
fn half_way(
    n: &mut Narrator,
    lab: &Lab,
    server: &FtpServer,
    firewall: &Firewall,
) -> Result<(Session, SocketAddr)> {
    let mut session = Session::login(lab, Family::V6)?;
    let at = session.epsv()?;
    n.say(format!(
        "EPSV: the server waits at port {}. The firewall at its end:",
        at.port()
    ));
    let opened = process::await_some("an expectation", HANGS, || {
        let all = firewall.expectations().ok()?;
        all.into_iter().find(|e| e.dport == at.port())
    });
    show(n, firewall, &["expect", "list"])?;
    n.step(
        "The helper read the reply and expects exactly that connection",
        opened
            .as_ref()
            .is_ok_and(|e| e.src == lab.client_ip(Family::V6) && e.dst == at.ip()),
        opened.as_ref().map_or("it expects nothing".into(), |e| {
            format!("from {}, to port {}", e.src, e.dport)
        }),
    );

    let tried = lab.ns(Node::Client).connect(at, HANGS)?;
    n.step(
        "The client connects to it",
        tried.is_ok(),
        tried
            .as_ref()
            .err()
            .map_or("it is through".into(), ToString::to_string),
    );
    let mut data = tried.context("there is no data connection to look at")?;
    session.command("RETR payload.bin")?.be(150)?;
    data.read_exact(&mut [0; 4096])?;
    show(n, firewall, &["flows", "list"])?;
    show(n, firewall, &["ftp", "list"])?;
    let flows = firewall.flows()?;
    let is_data = |ends: (SocketAddr, SocketAddr)| ends.1 == at;
    n.step(
        "The control and the data connection are tracked",
        flows.iter().filter(|f| f.is_established()).count() == 2
            && flows.iter().filter_map(|f| f.ends()).any(is_data),
        format!("{} flows", flows.len()),
    );
    let sessions = firewall.sessions()?;
    n.step(
        "And the session",
        sessions.iter().any(|s| s.phase == "ready" && s.opened > 0),
        format!("{} known", sessions.len()),
    );

    let mut rest = Vec::new();
    data.read_to_end(&mut rest)?;
    session.reply()?.be(226)?;
    n.step(
        "The transfer comes to its end",
        rest.len() as u64 + 4096 == server.payload().len,
        format!("{} bytes", rest.len() + 4096),
    );
    Ok((session, at))
}

fn closes(
    n: &mut Narrator,
    lab: &Lab,
    firewall: &Firewall,
    mut session: Session,
    used: SocketAddr,
) -> Result<()> {
    // A fresh pinhole, which nobody uses: it must not outlive its session.
    let unused = session.epsv()?;
    session.command("QUIT")?.be(221)?;
    n.say(format!(
        "The client negotiates once more (port {}), does not use it, and quits.",
        unused.port()
    ));
    for (at, which) in [(used, "used"), (unused, "unused")] {
        let tried = lab.ns(Node::Client).connect(at, HANGS)?;
        n.step(
            format!("The {which} port {} is closed at once", at.port()),
            tried
                .as_ref()
                .is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut),
            tried.map_or_else(|e| e.to_string(), |_| "connected".into()),
        );
    }
    show(n, firewall, &["expect", "list"])?;
    let left = firewall.expectations()?.len();
    n.step("No expectation is left", left == 0, format!("{left} left"));
    Ok(())
}

/// Shows a command's table as a person would see it.
fn show(n: &Narrator, firewall: &Firewall, args: &[&str]) -> Result<()> {
    let output = firewall.cli(args)?;
    n.show(
        &format!("pinhole {}", args.join(" ")),
        &format!("{}{}", output.stdout, output.stderr),
    );
    Ok(())
}
