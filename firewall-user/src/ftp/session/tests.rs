use super::*;
use crate::ftp::Alias;

const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "192.0.2.7";

/// A scenario: feeds lines as `C …` and `S …` and returns what they brought about.
struct Scenario(Session);

impl Scenario {
    fn greeting() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self(Session::new(
            CLIENT.parse().unwrap(),
            SERVER.parse().unwrap(),
            config,
        ))
    }

    fn ready() -> Self {
        let mut s = Self::greeting();
        s.run("S 220 hi\nC USER a\nS 331 password\nC PASS b\nS 230 in");
        assert_eq!(s.0.phase(), SessionPhase::Ready);
        s
    }

    fn run(&mut self, lines: &str) -> Vec<String> {
        let mut out = Vec::new();
        for line in lines.lines() {
            let (side, text) = line.trim_start().split_at(2);
            match side {
                "C " => self.0.client_line(text.as_bytes(), &mut out),
                _ => self.0.server_line(text.as_bytes(), 0, &mut out),
            }
        }
        out.iter().map(show).collect()
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::Open(o) => format!(
            "open {} {} -> {}:{}",
            o.via.name(),
            o.src,
            o.dst,
            o.port.get()
        ),
        Action::Withdraw(o) => format!("withdraw {}", o.port.get()),
        Action::CloseAll => "close".into(),
        Action::Phase(phase) => phase.name().into(),
        Action::Refused(refusal) => format!("refused {}", refusal.name()),
    }
}

#[test]
fn the_four_commands_open_what_was_negotiated() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C PASV\nS 227 Entering Passive Mode (192,0,2,7,195,155)."),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
    assert_eq!(
        s.run("C EPSV\nS 229 Entering Extended Passive Mode (|||50053|)"),
        ["open EPSV 10.0.0.2 -> 192.0.2.7:50053"]
    );
    assert_eq!(
        s.run("C PORT 10,0,0,2,195,155"),
        ["open PORT 192.0.2.7 -> 10.0.0.2:50075"]
    );
    assert!(s.run("S 200 ok").is_empty());
    assert_eq!(
        s.run("C EPRT |1|10.0.0.2|50053|"),
        ["open EPRT 192.0.2.7 -> 10.0.0.2:50053"]
    );
}

#[test]
fn h09_the_long_forms_open_too() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C LPSV\nS 228 Entering Long Passive Mode (4,4,192,0,2,7,2,195,155)"),
        ["open LPSV 10.0.0.2 -> 192.0.2.7:50075"]
    );
    assert_eq!(
        s.run("C LPRT 4,4,10,0,0,2,2,195,155\nS 200 ok"),
        ["open LPRT 192.0.2.7 -> 10.0.0.2:50075"]
    );
    for (lines, refusal) in [
        ("C LPRT 4,4,10,0,0,3,2,195,155\nS 500 no", "foreign-address"),
        ("C LPRT 4,4,10,0,0,2,2,0,22\nS 500 no", "privileged-port"),
        ("C PASV\nS 228 (4,4,192,0,2,7,2,195,155)", "unsolicited"),
        ("C LPSV\nS 227 (192,0,2,7,195,155)", "unsolicited"),
        ("S 228 (4,4,192,0,2,7,2,195,155)", "unsolicited"),
    ] {
        assert_eq!(s.run(lines), [format!("refused {refusal}")], "{lines}");
    }
}

#[test]
fn phases_follow_the_log_in() {
    let mut s = Scenario::greeting();
    assert!(
        s.run("S 220-welcome\nS  to this\nS 120 not that")
            .is_empty()
    );
    assert_eq!(s.run("S 220 go on"), ["login"]);
    assert!(
        s.run("C HOST a\nS 220 that host\nC USER a\nS 331 x\nC PASS b\nS 530 no")
            .is_empty()
    );
    assert_eq!(s.run("C PASS c\nS 230 in"), ["ready"]);
    assert_eq!(s.run("C QUIT\nS 221 bye"), ["close", "closed"]);
    assert!(s.run("C PASV\nS 227 (192,0,2,7,195,155)").is_empty());
}

#[test]
fn h04_pipelined_commands_are_matched_in_order() {
    let mut s = Scenario::ready();
    let out = s.run(
        "C TYPE I\nC PASV\nC SIZE x\nC EPSV
         S 200 ok\nS 227 (192,0,2,7,195,155)\nS 550 no\nS 229 (|||50053|)",
    );
    assert_eq!(
        out,
        [
            "open PASV 10.0.0.2 -> 192.0.2.7:50075",
            "open EPSV 10.0.0.2 -> 192.0.2.7:50053"
        ]
    );
}

#[test]
fn h05_only_a_solicited_final_reply_opens() {
    let mut s = Scenario::ready();
    assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), ["refused unsolicited"]);
    assert_eq!(s.run("S 229 (|||50053|)"), ["refused unsolicited"]);
    // The wrong reply to the right command, and the other way round.
    assert_eq!(s.run("C PASV\nS 229 (|||50053|)"), ["refused unsolicited"]);
    assert_eq!(
        s.run("C EPSV\nS 227 (192,0,2,7,195,155)"),
        ["refused unsolicited"]
    );
    // Answered already.
    assert_eq!(
        s.run("C PASV\nS 502 no\nS 227 (192,0,2,7,195,155)"),
        ["refused unsolicited"]
    );
    // One reply, one opening.
    let twice = s.run("C PASV\nS 227 (192,0,2,7,195,155)\nS 227 (192,0,2,7,195,156)");
    assert_eq!(
        twice,
        [
            "open PASV 10.0.0.2 -> 192.0.2.7:50075",
            "refused unsolicited"
        ]
    );
    // Text that is echoed within a longer reply, before the real one.
    let echoed = s.run(
        "C STAT 227 (192,0,2,7,0,22)\nC PASV
         S 213-status of\nS 227 (192,0,2,7,4,22)\nS 213 end\nS 227 (192,0,2,7,195,155)",
    );
    assert_eq!(echoed, ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]);
    // Out of order: the reply to NOOP's successor does not open for PASV.
    assert_eq!(
        s.run("C SIZE x\nC PASV\nS 227 (192,0,2,7,195,155)"),
        ["refused unsolicited"]
    );
    // After which the session is in step again.
    assert_eq!(
        s.run("C PASV\nS 227 (192,0,2,7,195,155)"),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
}

#[test]
fn h05_a_reply_from_the_clients_side_opens_nothing() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C PASV\nC 227 (192,0,2,7,195,155)"),
        ["refused wrong-side"]
    );
}

#[test]
fn a_preliminary_reply_leaves_the_command_outstanding() {
    let mut s = Scenario::ready();
    let out = s.run("C PASV\nS 150 wait\nS 227 (192,0,2,7,195,155)");
    assert_eq!(out, ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]);
}

#[test]
fn h06_nothing_before_the_greeting() {
    let mut s = Scenario::greeting();
    assert_eq!(
        s.run("C PORT 10,0,0,2,195,155\nC PASV"),
        ["refused before-greeting", "refused before-greeting"]
    );
    assert_eq!(
        s.run("S 227 (192,0,2,7,195,155)"),
        ["refused before-greeting"]
    );
    assert_eq!(s.run("S 220 hi"), ["login"]);
    // It answers the PASV, which was refused already.
    assert!(s.run("S 200 ok\nS 227 (192,0,2,7,195,155)").is_empty());
    assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), ["refused unsolicited"]);
}

#[test]
fn h06_http_poisons_for_good() {
    for verb in ["POST / HTTP/1.1", "get /", "CONNECT a:21 HTTP/1.1"] {
        let mut s = Scenario::ready();
        assert_eq!(
            s.run(&format!("C {verb}")),
            ["refused http-verb", "close", "poisoned"]
        );
        assert!(
            s.run("C PORT 10,0,0,2,195,155\nC PASV\nS 227 (192,0,2,7,195,155)")
                .is_empty()
        );
    }
    let mut s = Scenario::greeting();
    assert_eq!(
        s.run("S HTTP/1.1 400 no"),
        ["refused http-verb", "close", "poisoned"]
    );
    // Any other verb is none of our business.
    let mut s = Scenario::ready();
    assert!(
        s.run("C XCRC x\nS 500 what\nC SITE CHMOD\nS 200 ok")
            .is_empty()
    );
}

#[test]
fn a10_a_server_that_does_not_speak_ftp_poisons() {
    let mut s = Scenario::greeting();
    assert_eq!(
        s.run("S SSH-2.0-x"),
        ["refused not-ftp", "close", "poisoned"]
    );
}

#[test]
fn h07_h08_own_address_and_bounded_port_only() {
    let mut s = Scenario::ready();
    for (line, want) in [
        ("C PORT 10,0,0,3,195,155", "foreign-address"),
        ("C PORT 192,0,2,7,195,155", "foreign-address"),
        ("C EPRT |1|10.0.0.3|50053|", "foreign-address"),
        ("C EPRT |2|fd99::1|50053|", "wrong-family"),
        ("C EPRT |2|::ffff:10.0.0.2|50053|", "wrong-family"),
        ("C PORT 10,0,0,2,3,255", "privileged-port"),
        ("C PORT 10,0,0,2,0,0", "bad-number"),
        ("C PORT 10,0,0,2,256,22", "bad-number"),
        ("C EPRT |1|10.0.0.2|65558|", "bad-number"),
        ("C PASV\nS 227 (10,0,0,2,195,155)", "foreign-address"),
        ("C PASV\nS 227 (0,0,0,0,195,155)", "foreign-address"),
        ("C PASV\nS 227 (192,0,2,7,0,22)", "privileged-port"),
        ("C EPSV\nS 229 (|||65558|)", "bad-number"),
        ("C EPSV\nS 229 (|||1023|)", "privileged-port"),
        ("C EPSV\nS 229 (|1|10.0.0.9|50053|)", "foreign-address"),
    ] {
        assert_eq!(s.run(line), [format!("refused {want}")], "{line}");
        s.run("S 500 no");
    }
    assert_eq!(
        s.run("C PORT 10,0,0,2,4,0"),
        ["open PORT 192.0.2.7 -> 10.0.0.2:1024"]
    );
}

#[test]
fn h07_a_server_may_announce_its_alias_and_nobody_elses() {
    let alias = |server: &str, announces: &str| Alias {
        server: server.parse().unwrap(),
        announces: announces.parse().unwrap(),
    };
    let aliases = vec![
        alias("192.0.2.7/32", "198.51.100.7"),
        alias("192.0.2.8/32", "198.51.100.8"),
    ];
    let mut s = Scenario::with(Config {
        aliases: aliases.leak(),
        ..Config::default()
    });
    s.run("S 220 hi\nC USER a\nS 230 in");
    // The data connection goes where the control connection went.
    assert_eq!(
        s.run("C PASV\nS 227 ok (198,51,100,7,195,155)"),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
    assert_eq!(
        s.run("C LPSV\nS 228 ok (4,4,198,51,100,7,2,195,155)"),
        ["open LPSV 10.0.0.2 -> 192.0.2.7:50075"]
    );
    for other in ["198,51,100,8", "198,51,100,9"] {
        assert_eq!(
            s.run(&format!("C PASV\nS 227 ok ({other},195,155)")),
            ["refused foreign-address"]
        );
    }
    // It is no address of the client's.
    assert_eq!(
        s.run("C PORT 198,51,100,7,195,155\nS 200 ok"),
        ["refused foreign-address"]
    );
}

#[test]
fn ipv6_takes_eprt_and_epsv() {
    let mut s = Scenario(Session::resume(
        "fd99::2".parse().unwrap(),
        "fd99::1".parse().unwrap(),
        Config::default(),
        SessionPhase::Ready,
        outstanding::NONE,
    ));
    assert_eq!(
        s.run("C EPRT |2|fd99::2|50053|\nS 200 ok"),
        ["open EPRT fd99::1 -> fd99::2:50053"]
    );
    assert_eq!(
        s.run("C EPSV 2\nS 229 (|||50054|)"),
        ["open EPSV fd99::2 -> fd99::1:50054"]
    );
    assert_eq!(s.run("C PORT 10,0,0,2,4,0"), ["refused wrong-family"]);
    s.run("S 501 no");
    assert_eq!(
        s.run("C PASV\nS 227 (192,0,2,7,4,0)"),
        ["refused wrong-family"]
    );
}

#[test]
fn epsv_all_leaves_epsv_alone() {
    let mut s = Scenario::ready();
    // pure-ftpd answers 220, which is no greeting.
    assert!(s.run("C EPSV ALL\nS 220 ok").is_empty());
    for (line, reply) in [
        ("PASV", "227 ok (192,0,2,7,195,155)"),
        ("LPSV", "228 ok (4,4,192,0,2,7,2,195,155)"),
        ("PORT 10,0,0,2,195,155", "200 ok"),
        ("EPRT |1|10.0.0.2|50053|", "200 ok"),
        ("LPRT 4,4,10,0,0,2,2,195,155", "200 ok"),
    ] {
        assert_eq!(
            s.run(&format!("C {line}\nS {reply}")),
            ["refused after-epsv-all"],
            "{line}"
        );
    }
    assert_eq!(
        s.run("C EPSV\nS 229 ok (|||50053|)"),
        ["open EPSV 10.0.0.2 -> 192.0.2.7:50053"]
    );
    // A later agent knows it, and REIN ends it.
    assert_eq!(s.0.flags(), session_flags::EPSV_ALL);
    s.run("C REIN\nS 220 again\nC USER a\nS 230 in");
    assert_eq!(s.0.flags(), 0);
    assert_eq!(s.run("C PASV\nS 227 ok (192,0,2,7,195,155)").len(), 1);
}

#[test]
fn a_refused_epsv_all_has_no_effect_and_a_pipelined_one_has() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C EPSV ALL\nC PORT 10,0,0,2,195,155\nS 500 what\nS 200 ok"),
        ["open PORT 192.0.2.7 -> 10.0.0.2:50075"],
        "at the reply: before it, nobody knows"
    );
    assert_eq!(
        s.run("C EPSV ALL\nC PORT 10,0,0,2,195,155\nC PASV\nS 200 ok\nS 200 ok"),
        ["refused after-epsv-all"]
    );
    assert_eq!(
        s.run("S 227 ok (192,0,2,7,195,155)"),
        ["refused after-epsv-all"]
    );
}

#[test]
fn epsv_by_number_is_of_the_control_connections_family() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C EPSV 1\nS 229 ok (|||50053|)"),
        ["open EPSV 10.0.0.2 -> 192.0.2.7:50053"]
    );
    assert_eq!(
        s.run("C EPSV 2\nS 229 ok (|||50053|)"),
        ["refused wrong-family"],
        "once, for both lines"
    );
    assert_eq!(
        s.run("C EPSV 2\nS 522 use (1)\nC EPSV\nS 229 ok (|||50054|)"),
        [
            "refused wrong-family",
            "open EPSV 10.0.0.2 -> 192.0.2.7:50054"
        ]
    );
}

#[test]
fn passive_mode_over_ipv6_is_read_as_servers_write_it() {
    let mut s = Scenario(Session::new(
        "fd99::2".parse().unwrap(),
        "fd99::1".parse().unwrap(),
        Config::default(),
    ));
    s.run("S 220 hi\nC USER a\nS 230 in");
    for reply in ["(1,195,155)", "(fd99::1,195,155)"] {
        assert_eq!(
            s.run(&format!("C PASV\nS 227 Entering Passive Mode {reply}.")),
            ["open PASV fd99::2 -> fd99::1:50075"]
        );
    }
    assert_eq!(
        s.run("C PASV\nS 227 ok (fd99::3,195,155)"),
        ["refused foreign-address"]
    );
    assert_eq!(
        s.run("C PASV\nS 227 ok (10,0,0,1,195,155)"),
        ["refused wrong-family"]
    );
}

#[test]
fn what_feat_says_of_ccc_is_remembered() {
    let mut s = Scenario::ready();
    assert_eq!(s.0.lists_ccc(), None);
    s.run("C FEAT\nS 500 what");
    assert_eq!(s.0.lists_ccc(), None, "it may know CCC all the same");
    s.run("C FEAT\nS 211-Features:\nS  MDTM\nS  EPSV\nS 211 End");
    assert_eq!(s.0.lists_ccc(), Some(false));
    s.run("C FEAT\nS 211-Features:\nS  MDTM\nS  ccc\nS 211 End");
    assert_eq!(s.0.lists_ccc(), Some(true));
    assert_eq!(s.0.flags(), session_flags::CCC_LISTED);
    // What answers another command tells nothing, and TLS takes nothing away.
    s.run("C STAT\nS 211-Status:\nS 211 End\nC AUTH TLS\nS 234 go");
    assert_eq!(s.0.lists_ccc(), Some(true));
    let resumed = Session::resume(
        CLIENT.parse().unwrap(),
        SERVER.parse().unwrap(),
        Config::default(),
        SessionPhase::Tls,
        outstanding::NONE,
    );
    assert_eq!(resumed.with_flags(s.0.flags()).lists_ccc(), Some(true));
}

#[test]
fn hosts_220_is_no_greeting() {
    let mut s = Scenario::greeting();
    assert_eq!(s.run("S 220 hi\nC HOST ftp.example\nS 220 ok"), ["login"]);
    assert_eq!(s.run("C USER a\nS 230 in"), ["ready"]);
    assert_eq!(
        s.run("C HOST ftp.example\nC PASV\nS 220 ok\nS 227 ok (192,0,2,7,195,155)"),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
}

#[test]
fn active_mode_waits_for_the_reply_before_log_in_and_by_configuration() {
    let mut s = Scenario::greeting();
    s.run("S 220 hi");
    assert!(s.run("C PORT 10,0,0,2,195,155").is_empty());
    assert!(s.run("S 530 log in first").is_empty());
    assert_eq!(
        s.run("C PORT 10,0,0,2,195,155\nS 200 ok"),
        ["ready", "open PORT 192.0.2.7 -> 10.0.0.2:50075"]
    );
    let mut s = Scenario::with(Config {
        active: ActiveOpen::AtReply,
        ..Config::default()
    });
    s.run("S 220 hi\nC USER a\nS 230 in");
    assert!(s.run("C PORT 10,0,0,2,195,155").is_empty());
    assert_eq!(s.run("S 200 ok"), ["open PORT 192.0.2.7 -> 10.0.0.2:50075"]);
}

#[test]
fn a_refused_port_is_withdrawn() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C PORT 10,0,0,2,195,155\nS 500 illegal PORT"),
        ["open PORT 192.0.2.7 -> 10.0.0.2:50075", "withdraw 50075"]
    );
}

#[test]
fn rein_goes_back_to_the_greeting() {
    let mut s = Scenario::ready();
    assert_eq!(
        s.run("C REIN\nC PASV"),
        ["greeting", "refused before-greeting"]
    );
    assert_eq!(s.run("S 120 soon\nS 220 again"), ["close", "login"]);
    assert!(s.run("S 530 no").is_empty());
    let mut s = Scenario::ready();
    assert_eq!(s.run("C REIN\nS 502 what"), ["greeting", "ready"]);
}

#[test]
fn an_aborted_transfer_leaves_the_session_in_step() {
    let open = ["open PASV 10.0.0.2 -> 192.0.2.7:50075"];
    for replies in [
        // RFC 959: 426 for the transfer, 226 for ABOR.
        "S 426 aborted\nS 226 ok",
        "S 226 done\nS 225 nothing to abort",
        // Servers that answer once, or three times.
        "S 226 ok",
        "S 426 aborted\nS 226 ok\nS 226 ok",
    ] {
        let mut s = Scenario::ready();
        s.run("C RETR x\nS 150 here\nC ABOR");
        s.run(replies);
        assert_eq!(
            s.run("C PASV\nS 227 (192,0,2,7,195,155)"),
            open,
            "{replies}"
        );
        // The stray reply may also come after the next command.
        let mut s = Scenario::ready();
        s.run("C RETR x\nS 150 here\nC ABOR\nS 426 a\nS 226 b\nC PASV\nS 226 stray");
        assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), open);
    }
}

#[test]
fn an_unanswered_noop_leaves_the_session_in_step() {
    let mut s = Scenario::ready();
    s.run("C RETR x\nS 150 here\nC NOOP\nS 226 done");
    assert_eq!(
        s.run("C PASV\nS 227 (192,0,2,7,195,155)"),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
}

/// The same line twice, once with room and once without: one opening, whether
/// or not they share a segment.
#[test]
fn what_finds_no_room_takes_no_earlier_opening_back() {
    let port = "C PORT 10,0,0,2,195,155";
    let mut s = Scenario::ready();
    let script = [port, &"C STAT\n".repeat(MAX_PENDING - 1), port].join("\n");
    let script = script.replace("\n\n", "\n");
    let opened = s.run(port);
    let mut again = Scenario::ready();
    let out = again.run(&script);
    assert_eq!(out, [opened[0].as_str(), "refused too-many-outstanding"]);
}

#[test]
fn outstanding_commands_are_bounded_and_stay_in_step() {
    let mut s = Scenario::ready();
    for _ in 0..10_000 {
        assert!(s.run("C SIZE x").is_empty());
    }
    assert_eq!(s.0.pending.len(), MAX_PENDING);
    assert_eq!(s.run("C PASV"), ["refused too-many-outstanding"]);
    assert_eq!(
        s.run("C PORT 10,0,0,2,195,155"),
        ["refused too-many-outstanding"]
    );
    for _ in 0..10_000 {
        assert!(s.run("S 550 no").is_empty());
    }
    assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), ["refused unsolicited"]);
    assert!(s.run("S 200 ok").is_empty());
    assert_eq!(
        s.run("C PASV\nS 227 (192,0,2,7,195,155)"),
        ["open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
}

#[test]
fn auth_goes_tls_and_nothing_before_it_carries_over() {
    for (command, reply) in [
        ("AUTH TLS", "234 go"),
        ("AUTH TLS-C", "234 go"),
        ("AUTH SSL", "334 go"),
        ("AUTH TLS-P", "234 go"),
    ] {
        let mut s = Scenario::greeting();
        s.run("S 220 hi");
        assert_eq!(
            s.run(&format!("C {command}\nC PORT 10,0,0,2,195,155\nC PASV")),
            ["refused during-auth", "refused during-auth"]
        );
        assert_eq!(s.run(&format!("S {reply}")), ["close", "tls"]);
        assert!(s.run("C PASV\nS 227 (192,0,2,7,195,155)").is_empty());
        let mut out = Vec::new();
        s.0.cleared(&mut out);
        assert_eq!(out, [Action::Phase(SessionPhase::Cleared)]);
        assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), ["refused unsolicited"]);
    }
}

#[test]
fn a_refused_auth_stays_clear() {
    let mut s = Scenario::greeting();
    s.run("S 220 hi");
    assert!(
        s.run("C AUTH TLS\nS 502 no\nC AUTH SSL\nS 502 no\nC USER a")
            .is_empty()
    );
    assert_eq!(s.run("S 230 in"), ["ready"]);
    // Another mechanism does not go TLS: its 334 is part of a dialogue.
    assert!(s.run("C AUTH GSSAPI\nS 334 go on").is_empty());
    // A 234 whose AUTH was not seen does: TLS is never read as text.
    assert_eq!(s.run("S 234 go"), ["close", "tls"]);
}

fn adopted() -> Scenario {
    Scenario(Session::resume(
        CLIENT.parse().unwrap(),
        SERVER.parse().unwrap(),
        Config::default(),
        SessionPhase::Adopted,
        outstanding::NONE,
    ))
}

#[test]
fn an_adopted_session_opens_active_ports_at_their_reply_only() {
    let mut s = adopted();
    assert_eq!(s.run("C NOOP\nS 200 ok"), ["ready"]);
    for (line, via) in [
        ("C PORT 10,0,0,2,195,155", "PORT"),
        ("C EPRT |1|10.0.0.2|50075|", "EPRT"),
    ] {
        assert!(s.run(line).is_empty());
        let opened = format!("open {via} 192.0.2.7 -> 10.0.0.2:50075");
        assert_eq!(s.run("S 200 ok"), [opened]);
        assert!(s.run(line).is_empty());
        assert!(s.run("S 500 no").is_empty());
    }
}

#[test]
fn an_adopted_session_that_is_not_ftp_is_poisoned() {
    let not_ftp = ["refused not-ftp", "close", "poisoned"];
    // The rest of a request whose first line was not seen.
    assert_eq!(adopted().run("C Host: example.org"), not_ftp);
    assert_eq!(adopted().run("C NOOP\nC --boundary"), not_ftp);
    let http = ["refused http-verb", "close", "poisoned"];
    assert_eq!(adopted().run("C POST / HTTP/1.1"), http);
    assert_eq!(adopted().run("S HTTP/1.1 200 OK"), http);
    let mut s = adopted();
    s.run("C X-A: b");
    let after = "C PORT 10,0,0,2,195,155\nS 200 ok\nC PASV\nS 227 (192,0,2,7,195,155)";
    assert!(s.run(after).is_empty());
    // Once it has shown itself to be FTP, a command may be anything.
    let mut s = adopted();
    assert_eq!(s.run("C LIST\nS 150 go\nS 226 done\nC XYZZY"), ["ready"]);
}

#[test]
fn an_adopted_session_opens_after_a_complete_pair_only() {
    let mut s = adopted();
    assert_eq!(s.run("S 227 (192,0,2,7,195,155)"), ["refused unsolicited"]);
    assert!(s.run("C PORT 10,0,0,2,195,155").is_empty());
    assert_eq!(
        s.run("S 200 ok"),
        ["ready", "open PORT 192.0.2.7 -> 10.0.0.2:50075"]
    );
    let mut s = adopted();
    assert_eq!(
        s.run("C PASV\nS 227 (192,0,2,7,195,155)"),
        ["ready", "open PASV 10.0.0.2 -> 192.0.2.7:50075"]
    );
    let mut s = adopted();
    assert_eq!(s.run("C USER a\nS 331 x"), ["login"]);
}

#[test]
fn a_resumed_session_remembers_the_outstanding_command() {
    let mut s = Scenario(Session::resume(
        CLIENT.parse().unwrap(),
        SERVER.parse().unwrap(),
        Config::default(),
        SessionPhase::Ready,
        outstanding::EPSV,
    ));
    assert_eq!(s.0.outstanding(), outstanding::EPSV);
    assert_eq!(
        s.run("S 229 (|||50053|)"),
        ["open EPSV 10.0.0.2 -> 192.0.2.7:50053"]
    );
    assert_eq!(s.0.outstanding(), outstanding::NONE);
}

#[test]
fn a_server_that_closes_with_421_closes() {
    let mut s = Scenario::ready();
    assert_eq!(s.run("S 421 idle"), ["close", "closed"]);
}

#[test]
fn no_http_method_gets_around_the_poison() {
    // A page can have a browser send any token for a method.
    for request in [
        "C FOO / HTTP/1.1",
        "C PROPFIND /x HTTP/1.1",
        "C Host: files.example",
        "C LIST / HTTP/1.1\nC Host: files.example",
        "C REGISTER sip:a SIP/2.0",
        "C X-Forwarded:y",
    ] {
        let mut s = Scenario::greeting();
        s.run("S 220 hi");
        s.run(request);
        assert_eq!(s.0.phase(), SessionPhase::Poisoned, "{request}");
        let body = s.run("C PORT 10,0,0,2,195,155\nS 200 ok\nS 200 ok\nS 200 ok");
        assert!(body.is_empty(), "{request}: {body:?}");
    }
    // What an FTP client may say.
    let mut s = Scenario::ready();
    s.run("C RETR a HTTP/1.1\nS 550 no\nC XCRC a:b\nS 500 no\nC FOO HTTP\nS 500 no");
    s.run("C SITE UTIME x: y\nS 200 ok\nC OPTS UTF8 ON\nS 200 ok");
    assert_eq!(s.0.phase(), SessionPhase::Ready);
}
