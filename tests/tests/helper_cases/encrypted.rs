//! H12, H13, H14: what is encrypted, and what comes after it.

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{fake_server::tls_record, process};

use crate::case::{
    Case,
    Listener::{Client, Server},
};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// A handshake record (RFC 8446, section 5.1), of TLS 1.2 as of 1.3.
fn handshake() -> Vec<u8> {
    let mut record = tls_record(&[1; 64]);
    record[0] = 22;
    record
}

/// Greeted, and encrypted since AUTH TLS; both sides have sent data.
fn encrypted(auth: &str, answer: &str) -> Result<Case> {
    let mut case = Case::silent()?;
    case.s("220 ready\r\n")?;
    case.c(format!("AUTH {auth}\r\n"))?;
    case.s(format!("{answer}\r\n"))?;
    handshakes(&mut case)?;
    Ok(case)
}

fn handshakes(case: &mut Case) -> Result<()> {
    case.c(handshake())?;
    case.s(handshake())?;
    case.c(tls_record(b"Finished, USER u, PASS p"))?;
    case.s(tls_record(b"331, 230"))
}

/// How an encrypted direction ends (close_notify).
#[derive(Clone, Copy, Debug)]
enum Close {
    /// Nothing is sent (curl in passive CCC).
    None,
    /// An alert record, as TLS 1.2 sends it.
    Alert,
    /// 19 bytes that look like data, as TLS 1.3 sends it.
    Record,
    /// Two of these (lftp).
    Twice,
}

impl Close {
    fn bytes(self) -> Vec<u8> {
        let alert = vec![21, 3, 3, 0, 2, 1, 0];
        let record = tls_record(&[0xa5; 19]);
        match self {
            Self::None => Vec::new(),
            Self::Alert => alert,
            Self::Record => record,
            Self::Twice => [record.clone(), record].concat(),
        }
    }
}

#[test]
fn h12_every_mechanism_of_auth() -> Result<()> {
    for (auth, answer) in [
        ("TLS", "234 Go"),
        ("TLS-C", "234 Go"),
        ("SSL", "334 Go"),
        ("TLS-P", "234 Go"),
    ] {
        let mut case = encrypted(auth, answer).context(auth)?;
        case.is_in_phase("tls")?;
        case.c(tls_record(b"QUIT"))?;
    }
    Ok(())
}

#[test]
fn h12_implicit_tls() -> Result<()> {
    let mut case = Case::silent()?;
    handshakes(&mut case)?;
    case.is_in_phase("tls")
}

/// The kernel's helper opens at these.
#[test]
fn h12_a_record_whose_text_ends_in_lf_before_227() -> Result<()> {
    let mut case = encrypted("TLS", "234 Go")?;
    let forged = format!("\r\n{}", case.pasv_reply(50075));
    case.c(tls_record(b"\r\nPASV\r\n"))?;
    case.s(tls_record(forged.as_bytes()))?;
    // A record in two segments, the second of which begins with the text.
    let record = tls_record(forged.as_bytes());
    case.c(tls_record(b"PASV\r\n"))?;
    case.s(&record[..7])?;
    case.s(&record[7..])?;
    let port = tls_record(case.port(50076).as_bytes());
    case.c(&port[..5])?;
    case.c(&port[5..])?;
    case.is_in_phase("tls")?;
    case.stays_shut(Server, 50075)?;
    case.stays_shut(Client, 50076)?;
    case.nothing_happened(0)
}

/// Record headers split over segments, and several records in one.
#[test]
fn h12_records_are_framed_across_segments() -> Result<()> {
    let mut case = encrypted("TLS", "234 Go")?;
    let record = tls_record(&[b'\n'; 300]);
    case.s(&record[..3])?;
    case.s(&record[3..200])?;
    case.s([&record[200..], &record, &record[..1]].concat())?;
    case.s(&record[1..])?;
    case.is_in_phase("tls")?;
    // The framing was not lost: clear text is found where the records end.
    case.c([Close::Alert.bytes().as_slice(), b"PASV\r\n"].concat())?;
    let reply = case.pasv_reply(50075);
    case.s([Close::Alert.bytes().as_slice(), reply.as_bytes()].concat())?;
    case.is_in_phase("cleared")?;
    case.opens(Server, 50075)
}

#[test]
fn h13_pasv_is_the_first_line_after_ccc() -> Result<()> {
    for close in [Close::None, Close::Alert, Close::Record, Close::Twice] {
        let mut case = encrypted("TLS", "234 Go")?;
        ccc(&mut case, close)?;
        case.c([close.bytes().as_slice(), b"PASV\r\n"].concat())?;
        case.s(case.pasv_reply(50075))?;
        case.opens(Server, 50075)
            .with_context(|| format!("{close:?}"))?;
        case.is_in_phase("cleared")?;
    }
    Ok(())
}

#[test]
fn h13_port_is_the_first_line_after_ccc() -> Result<()> {
    for close in [Close::None, Close::Alert, Close::Record, Close::Twice] {
        let mut case = encrypted("TLS", "234 Go")?;
        ccc(&mut case, close)?;
        let port = case.port(50075);
        // In a segment of its own, too.
        case.c(close.bytes())?;
        case.c(port)?;
        case.s("200 ok\r\n")?;
        case.opens(Client, 50075)
            .with_context(|| format!("{close:?}"))?;
    }
    Ok(())
}

/// CCC and its answer; the server ends its records.
fn ccc(case: &mut Case, close: Close) -> Result<()> {
    case.c(tls_record(b"CCC"))?;
    case.s(tls_record(b"200 Clearing"))?;
    case.s(close.bytes())
}

/// Nothing that was negotiated before TLS carries over it.
#[test]
fn h13_nothing_parsed_before_tls_counts_after_it() -> Result<()> {
    let mut case = Case::ready()?;
    case.c("PASV\r\nAUTH TLS\r\n")?;
    case.s(format!("{}234 Go\r\n", case.pasv_reply(50075)))?;
    handshakes(&mut case)?;
    case.stays_shut(Server, 50075)?;
    ccc(&mut case, Close::Record)?;
    case.s(case.pasv_reply(50076))?;
    case.refused("unsolicited")?;
    case.stays_shut(Server, 50076)?;
    case.still_works(50077)
}

/// The dropped SYN is told of its session, with its port, its sender and why.
#[test]
fn h14_ftps_without_ccc_says_what_was_dropped() -> Result<()> {
    let mut case = encrypted("TLS", "234 Go")?;
    case.c(tls_record(b"PASV"))?;
    case.s(tls_record(b"227 (203,0,113,2,195,155)"))?;
    case.stays_shut(Server, 50075)?;
    for (firewall, who) in case.world.firewalls().iter().zip(["fw-a", "fw-b"]) {
        // What the first one drops never comes to the second.
        let wanted = who == "fw-a";
        let told = process::await_some("the drop is told", SOON, || {
            let session = case.session(firewall).ok()?;
            (session.encrypted && (session.dropped > 0) == wanted).then_some(session)
        })
        .context(who)?;
        let drop = told.drops.first();
        ensure!(drop.is_some() == wanted, "{who}: {told:?}");
        if let Some(drop) = drop {
            ensure!(drop.dport == 50075 && drop.from == "client", "{told:?}");
            ensure!(drop.reason == "policy", "{told:?}");
        }
    }
    Ok(())
}
