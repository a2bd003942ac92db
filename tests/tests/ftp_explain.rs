//! `ftp explain` says what became of a data connection, and what would help.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::lab::{
    Family, Guard, Lab, Node, Place,
    client::{FtpCommand, Kind, Request},
    kernel::NftFirewall,
    pinhole::{Attach, Firewall},
    process,
    script::Session,
    server::{self, FtpServer},
};
use serde_json::Value;

const HANGS: Duration = Duration::from_secs(5);

/// What `ftp explain` says of the client's sessions, once one of them has this outcome.
fn explained(firewall: &Firewall, lab: &Lab, outcome: &str) -> Result<Value> {
    let host = lab.client_ip(Family::V4).to_string();
    process::await_some(outcome, Duration::from_secs(10), || {
        let all = firewall.json(&["ftp", "explain", &host]).ok()?;
        let mut sessions = all.as_array()?.iter();
        let has = |session: &&Value| outcomes(session).iter().any(|o| o == outcome);
        sessions.find(has).cloned()
    })
}

fn outcomes(session: &Value) -> Vec<String> {
    let data = session["data"].as_array().map(Vec::as_slice);
    let data = data.unwrap_or_default().iter();
    data.filter_map(|data| data["outcome"].as_str().map(str::to_owned))
        .collect()
}

fn remedies(session: &Value) -> Vec<&str> {
    let all = session["remedies"].as_array().map(Vec::as_slice);
    let all = all.unwrap_or_default().iter();
    all.filter_map(|remedy| remedy["remedy"].as_str()).collect()
}

fn words(firewall: &Firewall, lab: &Lab) -> Result<String> {
    let host = lab.client_ip(Family::V4).to_string();
    let output = firewall.cli(&["ftp", "explain", &host])?;
    ensure!(output.success(), "{}", output.stderr);
    // Wherever its lines end.
    Ok(output
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" "))
}

#[test]
fn a_blind_session_is_explained_and_what_is_printed_helps() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Proftpd)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let request = || {
        let mut request = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, Family::V4);
        request.tls = true;
        request.patience(HANGS)
    };
    // The control: nothing to explain in clear.
    let clear = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, Family::V4).run(&lab)?;
    ensure!(clear.is(server.payload()), "{clear:?}");
    let fine = explained(firewall, &lab, "connected")?;
    ensure!(
        fine["trouble"] == false && remedies(&fine).is_empty(),
        "{fine}"
    );

    let outcome = request().run(&lab)?;
    ensure!(outcome.hung_at_data(), "{outcome:?}");
    let session = explained(firewall, &lab, "dropped-here")?;
    ensure!(
        session["live"] == false,
        "it has ended, and is explained: {session}"
    );
    let wanted = ["ccc", "session-range", "fixed-range", "ask-the-server"];
    ensure!(remedies(&session) == wanted, "{session}");
    let dropped = &session["data"][0];
    ensure!(
        dropped["encrypted"] == true && dropped["reason"] == "policy",
        "{dropped}"
    );
    let text = words(firewall, &lab)?;
    let port = dropped["dport"].as_u64().context("a port")?;
    for part in [
        "went TLS",
        "dropped here (policy)",
        &format!(":{port}"),
        "--ftp-ssl-ccc",
    ] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }

    // What it prints, pasted, with the range that its operator names, lets FTPS through.
    let config = session["remedies"][1]["config"]
        .as_str()
        .context("a range")?;
    let pasted = config.replace(&format!("\"{port}\""), "\"50000-50099\"");
    ensure!(pasted != config, "{config}");
    let policy = firewall_tests::lab::pinhole::config::gateway(Node::FwB, true);
    firewall.stop_agent();
    firewall.start_agent_with(&format!("{policy}{pasted}"), &[])?;
    let outcome = request().patience(Duration::from_secs(10)).run(&lab)?;
    ensure!(outcome.is(server.payload()), "{outcome:?}");
    Ok(())
}

#[test]
fn a_fixed_range_lets_ftps_through_for_good() -> Result<()> {
    let lab = Lab::line()?;
    let server = FtpServer::start(&lab, server::Kind::Proftpd)?;
    let mut guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &mut guarded.pinholes[0];
    let mut request = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, Family::V4);
    request.tls = true;
    let outcome = request.clone().patience(HANGS).run(&lab)?;
    ensure!(outcome.hung_at_data(), "{outcome:?}");
    let session = explained(firewall, &lab, "dropped-here")?;
    let port = session["data"][0]["dport"].as_u64().context("a port")?;
    let config = session["remedies"][2]["config"]
        .as_str()
        .context("a rule")?;
    let pasted = config.replace(&format!("\"{port}\""), "\"50000-50099\"");
    let policy = firewall_tests::lab::pinhole::config::gateway(Node::FwB, true);
    firewall.stop_agent();
    firewall.start_agent_with(&format!("{policy}{pasted}"), &[])?;
    let outcome = request.run(&lab)?;
    ensure!(outcome.is(server.payload()), "{outcome:?}");
    Ok(())
}

#[test]
fn a_firewall_beyond_is_told_apart() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start(&lab, server::Kind::Proftpd)?;
    let near = "[zones.inside]\ninterfaces = [\"in0\"]\ntrusted = true\n\
                [zones.outside]\ninterfaces = [\"out0\"]\n\
                [[rule]]\nname = \"ftp\"\nfrom = \"inside\"\nproto = \"tcp\"\ndport = 21\n\
                action = \"accept\"\nhelper = \"ftp\"\n\
                [[rule]]\nname = \"out\"\nfrom = \"inside\"\naction = \"accept\"\n";
    let firewall = Firewall::start(&lab, Node::FwA, Some(near), Attach::default())?;
    let _far = NftFirewall::start(lab.ns(Node::FwB), true)?;
    let mut request = Request::new(&lab, Kind::Ftplib, FtpCommand::Epsv, Family::V4);
    request.tls = true;
    let outcome = request.patience(HANGS).run(&lab)?;
    ensure!(outcome.hung_at_data(), "{outcome:?}");
    let session = explained(&firewall, &lab, "passed-no-reply")?;
    ensure!(remedies(&session) == ["beyond"], "{session}");
    ensure!(
        !outcomes(&session).iter().any(|o| o == "dropped-here"),
        "{session}"
    );
    let text = words(&firewall, &lab)?;
    ensure!(text.contains("passed here, no reply for"), "{text}");
    ensure!(text.contains("a firewall or host beyond"), "{text}");
    Ok(())
}

#[test]
fn a_port_that_nobody_tried_was_never_seen() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &guarded.pinholes[0];
    let mut session = Session::login(&lab, Family::V4)?;
    let SocketAddr::V4(at) = session.epsv()? else {
        anyhow::bail!("IPv4 was asked for");
    };
    drop(session);
    let told = explained(firewall, &lab, "never-seen")?;
    ensure!(told["data"][0]["dport"] == at.port(), "{told}");
    ensure!(told["data"][0]["syns"] == 0, "{told}");
    let text = words(firewall, &lab)?;
    ensure!(text.contains("never seen here"), "{text}");
    Ok(())
}

#[test]
fn a_data_syn_of_another_host_is_told() -> Result<()> {
    let lab = Lab::line()?;
    let _server = FtpServer::start_at(&lab, Node::Server, server::Kind::Vsftpd, 1000)?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ClientEnd, true)?;
    let firewall = &guarded.pinholes[0];
    let mut session = Session::login(&lab, Family::V4)?;
    let listener = session.eprt(&lab)?;
    let at = listener.local_addr()?;
    process::await_some("the pinhole", Duration::from_secs(10), || {
        let open = firewall.expectations().ok()?;
        open.iter().any(|e| e.dport == at.port()).then_some(())
    })?;
    let third = lab.ns(Node::Stranger);
    let tried = third.connect(at, Duration::from_millis(700))?;
    ensure!(tried.is_err(), "it came through: {tried:?}");
    let told = explained(firewall, &lab, "dropped-here")?;
    ensure!(remedies(&told) == ["other-address"], "{told}");
    let dropped = told["data"].as_array().and_then(|all| all.last());
    let dropped = dropped.context("no data connection")?;
    let address = |name: &str| dropped[name].as_str().map(str::to_owned);
    let of = |ip: std::net::IpAddr| Some(ip.to_string());
    ensure!(
        address("src") == of(lab.stranger_ip(Family::V4)),
        "{dropped}"
    );
    ensure!(
        address("in_place_of") == of(lab.server_ip(Family::V4)),
        "{dropped}"
    );
    let text = words(firewall, &lab)?;
    ensure!(text.contains("this is another host"), "{text}");
    // Whoever was expected can still come.
    let server = lab.ns(Node::Server);
    let came = server.connect_from(lab.server_ip(Family::V4), at, HANGS)?;
    ensure!(came.is_ok(), "{came:?}");
    Ok(())
}

#[test]
fn what_is_not_known_is_said_so() -> Result<()> {
    let lab = Lab::line()?;
    let guarded = Guard::Pinhole(Attach::default()).put(&lab, Place::ServerEnd, true)?;
    let firewall = &guarded.pinholes[0];
    let nobody = firewall.cli(&["ftp", "explain", "192.0.2.99"])?;
    ensure!(nobody.code == Some(1), "{nobody:?}");
    ensure!(
        nobody.stderr.contains("no such session"),
        "{}",
        nobody.stderr
    );
    let wrong = firewall.cli(&["ftp", "explain", "server"])?;
    ensure!(wrong.code == Some(2), "{wrong:?}");
    ensure!(wrong.stderr.contains("by its address"), "{}", wrong.stderr);
    let all = firewall.json(&["ftp", "explain"])?;
    ensure!(all == Value::Array(Vec::new()), "{all}");
    Ok(())
}
