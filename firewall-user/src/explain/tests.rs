//! Stories told from records.

use bytemuck::Zeroable as _;
use firewall_common::abi::DroppedSyn;

use super::{
    remedies::{Remedy, Seen, remedies},
    *,
};
use crate::{
    bpf::{maps::Names, words},
    journal::News,
};

const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "192.0.2.7";
const SECOND: u64 = NS_PER_SEC;

/// A journal that a test writes.
#[derive(Default)]
struct Log {
    told: Vec<Told>,
    phase: Option<SessionPhase>,
    cport: u16,
}

fn end(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

fn passive(sport: u16, dport: u16) -> Option<(SocketAddr, SocketAddr)> {
    Some((end(CLIENT, sport), end(SERVER, dport)))
}

impl Log {
    fn begun() -> Self {
        Self::begun_from(41822)
    }

    fn begun_from(cport: u16) -> Self {
        let mut log = Self {
            cport,
            ..Self::default()
        };
        log.at(1, News::of(JournalKind::Began));
        log
    }

    fn key(&self) -> FlowKey6 {
        let [client, server] = [CLIENT, SERVER].map(|host| words(host.parse().unwrap()));
        FlowKey6::from_parts(client, server, self.cport, 21, 6, 0)
    }

    fn at(&mut self, seconds: u64, news: News) -> &mut Self {
        if news.kind == JournalKind::Phase {
            self.phase = SessionPhase::try_from(news.reason).ok();
        }
        let session = Session {
            started_ns: SECOND,
            incarnation: 9,
            ..Session::zeroed()
        };
        let phase = self.phase.unwrap_or(SessionPhase::Greeting);
        let mut entry = news.entry(&self.key(), &session, phase, seconds * SECOND);
        entry.seq = self.told.len() as u64 + 1;
        self.told.push(Told::try_from(&entry).unwrap());
        self
    }

    fn phase(&mut self, seconds: u64, phase: SessionPhase) -> &mut Self {
        let news = News {
            reason: phase as u8,
            ..News::of(JournalKind::Phase)
        };
        self.at(seconds, news)
    }

    fn data(
        &mut self,
        seconds: u64,
        kind: JournalKind,
        ends: Option<(SocketAddr, SocketAddr)>,
    ) -> &mut Self {
        let news = News {
            connection: ends,
            lasted_ns: 3 * SECOND,
            reason: u8::from(kind == JournalKind::Dropped) * DropReason::Policy as u8,
            ..News::of(kind)
        };
        self.at(seconds, news)
    }

    fn opened(&mut self, seconds: u64, line: &str, port: u16) -> &mut Self {
        let news = News {
            connection: passive(0, port),
            via: Some(ExpectVia::Pasv),
            line: Some(Excerpt::text(line)),
            ..News::of(JournalKind::Opened)
        };
        self.at(seconds, news)
    }

    fn account(&self) -> Account {
        accounts(&self.told, &[], 100 * SECOND).remove(0)
    }
}

fn names_of(remedies: &[Remedy]) -> Vec<&'static str> {
    remedies.iter().map(|remedy| remedy.name).collect()
}

fn advised(account: &Account) -> Vec<Remedy> {
    remedies(account, std::slice::from_ref(account), &Names::default())
}

#[test]
fn an_encrypted_session_has_its_drops_and_its_remedies() {
    let mut log = Log::begun();
    log.phase(4, SessionPhase::Tls);
    for (port, at) in [(50_053, 5), (50_053, 6), (50_077, 9)] {
        log.data(at, JournalKind::Dropped, passive(40_000 + port % 100, port));
    }
    let account = log.account();
    assert_eq!(account.tls.as_ref().unwrap().at_ns, 4 * SECOND);
    let seen: Vec<_> = account
        .data
        .iter()
        .map(|d| (d.dst.port(), d.syns))
        .collect();
    assert_eq!(seen, [(50_053, 2), (50_077, 1)]);
    assert_eq!(account.data[0].fate, Fate::DroppedHere(DropReason::Policy));
    let advised = advised(&account);
    assert_eq!(
        names_of(&advised),
        ["ccc", "session-range", "fixed-range", "ask-the-server"]
    );
    assert!(
        advised[0].text.contains("is not known"),
        "{}",
        advised[0].text
    );
    assert_eq!(
        advised[1].config.as_deref(),
        Some(
            "[[ftp.session-range]]\nclients = \"10.0.0.2\"\nservers = \"192.0.2.7\"\n\
             ports = \"50053-50077\"\n"
        )
    );
    // What is printed is taken.
    let pasted: String = advised.iter().filter_map(|r| r.config.clone()).collect();
    let policy = format!("[zones.outside]\ninterfaces = [\"eth0\"]\n{pasted}");
    let policy = crate::config::Policy::parse("pasted", &policy, 2).unwrap();
    assert_eq!(policy.ftp.ranges[0].ports, [50_053, 50_077]);
    assert_eq!(policy.rules[0].name, "fixed-range-1");
    assert_eq!(policy.rules[0].dport[0].bounds(), [50_053, 50_077]);
}

#[test]
fn whether_the_server_has_ccc_is_said_as_far_as_it_is_known() {
    for (reason, want) in [(1, "The server lists CCC."), (0, "does not list CCC")] {
        let mut log = Log::begun();
        let features = News {
            reason,
            ..News::of(JournalKind::Features)
        };
        log.at(2, features).phase(4, SessionPhase::Tls);
        log.data(5, JournalKind::Dropped, passive(40_000, 50_053));
        let ccc = advised(&log.account()).remove(0);
        assert!(ccc.text.contains(want), "{}", ccc.text);
    }
}

#[test]
fn three_outcomes_are_kept_apart() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Ready);
    log.data(3, JournalKind::Dropped, passive(40_000, 50_000));
    log.opened(4, "227 a", 50_001);
    log.data(4, JournalKind::Used, passive(40_001, 50_001));
    log.data(7, JournalKind::Unanswered, passive(40_001, 50_001));
    log.opened(8, "227 b", 50_002);
    let account = log.account();
    let fates: Vec<_> = account.data.iter().map(|d| d.fate.name()).collect();
    assert_eq!(fates, ["dropped-here", "passed-no-reply", "never-seen"]);
    assert_eq!(account.data[1].fate, Fate::NoReply(3 * SECOND));
    assert_eq!(names_of(&advised(&account)), ["beyond", "client-mode"]);
    // It is too early to say that the last one never comes.
    let early = accounts(&log.told, &[], 9 * SECOND).remove(0);
    assert_eq!(early.data[2].fate, Fate::Withdrawn);
}

#[test]
fn a_syn_of_another_host_is_told_from_one_that_never_came() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Ready);
    log.opened(3, "227 a", 50_001);
    let third = Some((end("198.51.100.9", 40_000), end(SERVER, 50_001)));
    log.data(4, JournalKind::Dropped, third);
    let account = log.account();
    let fates: Vec<_> = account.data.iter().map(|d| d.fate.name()).collect();
    assert_eq!(fates, ["never-seen", "dropped-here"]);
    let stray = &account.data[1];
    assert_eq!(stray.in_place_of, Some(end(CLIENT, 0).ip()));
    assert_eq!(stray.via, Some(ExpectVia::Pasv));
    let advised = advised(&account);
    assert_eq!(names_of(&advised), ["other-address"]);
    assert!(advised[0].text.contains("198.51.100.9 came"));
    // Its own data connection, too, but to another port: both are said.
    log.opened(5, "227 b", 50_002);
    let both = log.account();
    assert_eq!(
        names_of(&remedies(&both, &[], &Names::default())),
        ["other-address", "client-mode"]
    );
}

#[test]
fn a_session_without_trouble_has_no_remedies() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Ready).opened(3, "227 a", 50_001);
    log.data(3, JournalKind::Used, passive(40_001, 50_001));
    log.data(4, JournalKind::Connected, passive(40_001, 50_001));
    log.at(5, News::of(JournalKind::Ended));
    let account = log.account();
    assert!(!account.is_trouble(), "{account:?}");
    assert_eq!(advised(&account), []);
    assert!(account.ended.is_some() && !account.cut);
}

#[test]
fn dropped_first_and_let_in_later_is_one_connection() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Tls);
    log.data(3, JournalKind::Dropped, passive(40_000, 50_000));
    log.data(4, JournalKind::Used, passive(40_000, 50_000));
    log.data(5, JournalKind::Connected, passive(40_000, 50_000));
    let account = log.account();
    assert_eq!(account.data.len(), 1);
    assert_eq!(
        (account.data[0].syns, account.data[0].fate),
        (2, Fate::Connected)
    );
}

#[test]
fn an_encrypted_session_that_passes_here_is_blocked_beyond() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Tls);
    log.data(3, JournalKind::Passed, passive(40_000, 50_000));
    log.data(6, JournalKind::Unanswered, passive(40_000, 50_000));
    let advised = advised(&log.account());
    assert_eq!(names_of(&advised), ["beyond"]);
    assert!(advised[0].text.contains("cannot read the port either"));
}

#[test]
fn a_private_address_in_a_227_has_an_alias_to_paste() {
    let mut log = Log::begun();
    let refused = News {
        reason: Refusal::ForeignAddress as u8,
        line: Some(Excerpt::text(
            "227 Entering Passive Mode (10,9,0,7,195,80).",
        )),
        ..News::of(JournalKind::Refused)
    };
    log.phase(2, SessionPhase::Ready).at(3, refused);
    let advised = advised(&log.account());
    assert_eq!(names_of(&advised), ["alias"]);
    assert!(advised[0].text.contains("10.9.0.7, a private address"));
    let config = advised[0].config.as_deref().unwrap();
    assert_eq!(
        config,
        "[[ftp.alias]]\nserver = \"192.0.2.7\"\nannounces = \"10.9.0.7\"\n"
    );
}

#[test]
fn a_live_session_is_explained_without_its_records() {
    let log = Log::begun();
    let mut session = Session {
        started_ns: SECOND,
        tls_ns: 2 * SECOND,
        incarnation: 9,
        phase: SessionPhase::Tls as u8,
        flags: session_flags::CCC_UNLISTED,
        ..Session::zeroed()
    };
    session.drops[0] = DroppedSyn {
        at_ns: 3 * SECOND,
        sport: 40_000,
        dport: 50_000,
        from_client: 1,
        reason: DropReason::Policy as u8,
        reserved: 0,
    };
    let live = [(log.key(), session)];
    let account = accounts(&[], &live, 9 * SECOND).remove(0);
    assert!(account.cut && account.blind().count() == 1);
    assert_eq!(account.client, end(CLIENT, 41822));
    assert_eq!(account.ccc, Some(false), "the record knows");
    // With its begin in the journal, it is one session all the same.
    assert_eq!(accounts(&log.told, &live, 9 * SECOND).len(), 1);
}

#[test]
fn the_range_is_the_narrowest_of_all_sessions_between_the_hosts() {
    let mut first = Log::begun();
    first.phase(2, SessionPhase::Tls);
    first.data(3, JournalKind::Dropped, passive(40_000, 50_090));
    let mut second = Log::begun_from(41823);
    second.phase(2, SessionPhase::Tls);
    second.data(3, JournalKind::Dropped, passive(40_000, 50_010));
    let (first, second) = (first.account(), second.account());
    let seen = Seen::of(&[&first, &second], Side::Server).unwrap();
    assert_eq!(seen.text(), "50010-50090");
    assert_eq!(Seen::of(&[&first], Side::Server).unwrap().text(), "50090");
    assert_eq!(Seen::of(&[&first], Side::Client), None);
}

#[test]
fn a_try_at_a_service_is_not_in_the_range_that_is_suggested() {
    let mut log = Log::begun();
    log.phase(2, SessionPhase::Tls);
    log.data(3, JournalKind::Dropped, passive(40_000, 50_053));
    log.data(4, JournalKind::Dropped, passive(40_001, 22));
    let advised = advised(&log.account());
    let range = advised.iter().find(|remedy| remedy.name == "session-range");
    let config = range.and_then(|remedy| remedy.config.clone()).unwrap();
    assert!(config.contains("ports = \"50053\""), "{config}");
}
