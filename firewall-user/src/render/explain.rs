//! `ftp explain`.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use firewall_common::abi::{ExpectVia, SessionPhase};
use jiff::Timestamp;
use serde::Serialize;

use super::{Now, ParentView, endpoint, flow::as_rfc3339};
use crate::{
    explain::{Account, Data, Fate, remedies::Remedy},
    ftp::Side,
    journal::short,
};

/// Width at which words are wrapped.
const WIDTH: usize = 96;

/// The story of an FTP session.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainView {
    /// The control connection: `client`, `cport`, `server`, `sport`.
    #[serde(flatten)]
    pub control: ParentView,
    /// Where it stands, or stood in the end.
    pub phase: &'static str,
    /// When it began, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub began: Timestamp,
    /// Is it still there?
    pub live: bool,
    /// Did anything go wrong?
    pub trouble: bool,
    /// Does the server list CCC: `yes`, `no` or `unknown`?
    pub ccc: &'static str,
    /// What happened, in words, in order.
    pub story: Vec<HappenedView>,
    /// Its data connections.
    pub data: Vec<DataFateView>,
    /// What would help, the best first.
    pub remedies: Vec<RemedyView>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct HappenedView {
    /// When, RFC 3339 in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// In words.
    pub text: String,
}

/// A data connection, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct DataFateView {
    /// `dropped-here`, `would-be-dropped-here`, `passed-no-reply`, `passed-reset`,
    /// `never-seen`, `connected`, `waiting` or `withdrawn`.
    pub outcome: &'static str,
    /// Name of the drop's reason; else `null`.
    pub reason: Option<&'static str>,
    /// When its SYN came, or when it was announced.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// Who connects.
    pub src: IpAddr,
    /// From which port; `null` if no SYN came.
    pub sport: Option<u16>,
    /// Who was expected in its place; `null` if `src` was.
    pub in_place_of: Option<IpAddr>,
    /// To whom.
    pub dst: IpAddr,
    /// To which port.
    pub dport: u16,
    /// The command that announced it; `null` if none could be read.
    pub via: Option<&'static str>,
    /// SYNs seen.
    pub syns: u32,
    /// Was the session encrypted then?
    pub encrypted: bool,
}

/// Something to do.
#[derive(Clone, Debug, Serialize)]
pub struct RemedyView {
    /// `ccc`, `session-range`, `fixed-range`, `ask-the-server`, `beyond`, `alias`,
    /// `reconnect`, `client-mode` or `other-address`.
    pub remedy: &'static str,
    /// In words.
    pub text: String,
    /// What to add to the policy file; `null` for nothing.
    pub config: Option<String>,
}

impl ExplainView {
    /// The view of `account` at `now`.
    #[must_use]
    pub fn new(account: &Account, remedies: Vec<Remedy>, now: Now) -> Self {
        Self {
            control: ParentView::of(account.client, account.server),
            phase: account.phase.name(),
            began: now.wall_of(account.started_ns),
            live: account.ended.is_none(),
            trouble: account.is_trouble(),
            ccc: match account.ccc {
                Some(true) => "yes",
                Some(false) => "no",
                None => "unknown",
            },
            story: story(account, now),
            data: account.data.iter().map(|data| fate(data, now)).collect(),
            remedies: remedies
                .into_iter()
                .map(|remedy| RemedyView {
                    remedy: remedy.name,
                    text: remedy.text,
                    config: remedy.config,
                })
                .collect(),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self, now: Now) -> String {
        let c = &self.control;
        let mut text = format!(
            "control {} -> {}, {}, {}\n",
            endpoint(c.client, Some(c.cport)),
            endpoint(c.server, Some(c.sport)),
            if self.live { "live" } else { "ended" },
            self.phase
        );
        for happened in &self.story {
            let mut head = "  ".to_owned();
            now.put_clock(&mut head, happened.at);
            head.push_str("  ");
            wrap(&mut text, &head, &happened.text);
        }
        if !self.trouble {
            text += "  Nothing went wrong that this firewall can see.\n";
        }
        if !self.remedies.is_empty() {
            text += "  What to do:\n";
        }
        for (number, remedy) in (1..).zip(&self.remedies) {
            wrap(&mut text, &format!("  {number}. "), &remedy.text);
            for line in remedy.config.iter().flat_map(|config| config.lines()) {
                let _ = writeln!(text, "         {line}");
            }
        }
        text
    }
}

/// Adds `words` behind `head`, wrapped under it.
fn wrap(text: &mut String, head: &str, words: &str) {
    let indent = head.chars().count();
    let (mut line, mut empty) = (head.to_owned(), true);
    for word in words.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            (line, empty) = (" ".repeat(indent), true);
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn story(account: &Account, now: Now) -> Vec<HappenedView> {
    let mut all: Vec<(u64, String)> = Vec::new();
    let begins = if account.cut {
        "session begins (the journal does not reach back so far)"
    } else {
        "session begins"
    };
    all.push((account.started_ns, begins.into()));
    if let Some(tls) = &account.tls {
        let line = quoted(tls.line.as_ref());
        let text = format!("the control connection went TLS{line}: the helper cannot read it");
        all.push((tls.at_ns, text));
    }
    if let Some(at_ns) = account.cleared_ns {
        let text = "in clear again (CCC): the helper reads the ports".into();
        all.push((at_ns, text));
    }
    all.extend(
        account
            .data
            .iter()
            .map(|data| (data.at_ns, told(account, data))),
    );
    all.extend(account.refused.iter().map(|(refusal, said)| {
        let line = quoted(said.line.as_ref());
        let text = format!(
            "opened nothing, {}{line}: {}",
            refusal.name(),
            refusal.help()
        );
        (said.at_ns, text)
    }));
    all.extend(account.failed.iter().map(|said| {
        let text = format!(
            "the server says that something failed{}",
            quoted(said.line.as_ref())
        );
        (said.at_ns, text)
    }));
    let unread_ns = account.unread_ns.unwrap_or(account.started_ns);
    match account.phase {
        SessionPhase::Blind => all.push((
            unread_ns,
            "bytes went by unread: the helper opens nothing more for this session".into(),
        )),
        SessionPhase::Poisoned => all.push((
            unread_ns,
            "what is spoken is not FTP: this connection can never open anything".into(),
        )),
        _ => {}
    }
    if let Some(ended) = &account.ended {
        let how = ended.line.as_ref().map(ToString::to_string);
        let text = format!("session ends ({})", how.unwrap_or_default());
        all.push((ended.at_ns, text));
    }
    all.sort_by_key(|(at_ns, _)| *at_ns);
    let views = all.into_iter().map(|(at_ns, text)| HappenedView {
        at: now.wall_of(at_ns),
        text,
    });
    views.collect()
}

fn quoted(line: Option<&crate::ftp::Excerpt>) -> String {
    line.map_or(String::new(), |line| format!(" (\"{line}\")"))
}

/// A data connection in a sentence.
fn told(account: &Account, data: &Data) -> String {
    let src = endpoint(
        data.src.ip(),
        Some(data.src.port()).filter(|port| *port != 0),
    );
    let dst = endpoint(data.dst.ip(), Some(data.dst.port()));
    let after = account
        .tls
        .as_ref()
        .filter(|tls| data.encrypted && tls.at_ns <= data.at_ns)
        .map(|tls| Duration::from_nanos(data.at_ns - tls.at_ns))
        .map(|time| format!(", {} after that", short(time)))
        .unwrap_or_default();
    let announced = match (data.via, &data.line) {
        (Some(via), Some(line)) => format!(", announced by {} (\"{line}\")", via.name()),
        (Some(via), None) => format!(", let in by {}", via.name()),
        (None, _) if data.encrypted => ": nobody can read which port was announced".into(),
        (None, _) => ": no line announced this port".into(),
    };
    let stray = data.in_place_of.map_or(String::new(), |expected| {
        format!(": the port was opened for {expected}, and this is another host")
    });
    let tries = match data.syns {
        0 | 1 => String::new(),
        n => format!(", {n} tries"),
    };
    let who = match data.listener {
        Side::Server => "client",
        Side::Client => "server",
    };
    match data.fate {
        Fate::DroppedHere(reason) => format!(
            "dropped here ({}): SYN {src} > {dst}{after}{tries}{announced}{stray}",
            reason.name()
        ),
        Fate::WouldDrop(reason) => format!(
            "would be dropped here ({}): SYN {src} > {dst}{after}{tries}{announced}{stray}",
            reason.name()
        ),
        Fate::NoReply(ns) => format!(
            "passed here, no reply for {}: SYN {src} > {dst}{after}: a firewall or host beyond",
            short(Duration::from_nanos(ns))
        ),
        Fate::Reset => format!(
            "passed here, and the other end reset it: SYN {src} > {dst}: nobody listens there, or a \
             firewall beyond rejects it"
        ),
        Fate::Connected => format!("data connection {src} > {dst} came about{}", by(data)),
        Fate::Waiting => format!("passed here, too early for more: SYN {src} > {dst}"),
        Fate::NeverSeen => format!(
            "never seen here: {src} > {dst}{announced}; the port was open, and no SYN of the {who} \
             came"
        ),
        Fate::Withdrawn => format!("not used: {src} > {dst}{announced}"),
    }
}

fn by(data: &Data) -> String {
    data.via
        .map_or(String::new(), |via| format!(" ({})", via.name()))
}

fn fate(data: &Data, now: Now) -> DataFateView {
    DataFateView {
        outcome: data.fate.name(),
        reason: match data.fate {
            Fate::DroppedHere(reason) | Fate::WouldDrop(reason) => Some(reason.name()),
            _ => None,
        },
        at: now.wall_of(data.at_ns),
        src: data.src.ip(),
        sport: Some(data.src.port()).filter(|port| *port != 0),
        in_place_of: data.in_place_of,
        dst: data.dst.ip(),
        dport: data.dst.port(),
        via: data.via.map(ExpectVia::name),
        syns: data.syns,
        encrypted: data.encrypted,
    }
}
