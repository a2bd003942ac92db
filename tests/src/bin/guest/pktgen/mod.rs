//! Two NICs on one wire: pinhole on the first, in native XDP mode, the kernel's
//! pktgen on the second. What is sent is held against what pinhole counts, to the
//! packet.

mod account;
mod source;

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{Netns, pinhole::Firewall, process};

use self::{
    account::Account,
    source::{Datagrams, Syns},
};
use crate::say;

/// The guarded NIC, moved into a namespace of its own, and the sender's.
const GUARDED: &str = "eth0";
const SENDER: &str = "eth1";
/// Packets of one scenario that pktgen makes, and that a socket does.
const PACKETS: u64 = 20_000;
const SYNS: u64 = 5_000;
/// Flows of a scenario that has many.
const FLOWS: u16 = 4_000;

/// Claimed sources are routed nowhere: the stack's answers would be counted, too.
const POLICY: &str = "\
[zones.outside]
interfaces = [\"eth0\"]
[[rule]]
name = \"discard\"
from = \"outside\"
to = \"host\"
proto = \"udp\"
dport = 9
action = \"accept\"
[[rule]]
name = \"web\"
from = \"outside\"
to = \"host\"
proto = \"tcp\"
dport = 80
action = \"accept\"
[[rule]]
name = \"out\"
from = \"host\"
action = \"accept\"
";

/// What a scenario must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// All pass, so many of them at least as the first of a flow.
    Pass { flows: u64 },
    /// All are dropped, because no rule accepts them.
    Refused,
}

/// All scenarios; fails if one does not add up, after the last.
pub(crate) fn all() -> Result<()> {
    let wire = Wire::lay()?;
    let refused = Datagrams::v4(&wire.mac).ports([9, 10], 5000);
    let single = Datagrams::v4(&wire.mac).sources(1).ports([4000, 4001], 9);
    let many = Datagrams::v4(&wire.mac)
        .sources(FLOWS)
        .ports([10_000, 10_000 + FLOWS], 9);
    let six = Datagrams::v6(&wire.mac).ports([4000, 4001], 9);
    let many_six = Datagrams::v6(&wire.mac).ports([10_000, 10_000 + FLOWS], 9);
    let pass = |flows| Fate::Pass { flows };
    let flows = u64::from(FLOWS);
    let mut wrong = Vec::new();
    let mut scenario = |name, fate, send: &dyn Fn() -> Result<u64>| -> Result<()> {
        let account = Account::of(&wire.firewall, send).context(name)?;
        say(&format!("{name:<28} {account}"));
        if let Err(error) = account.balanced().and_then(|()| account.came_to(fate)) {
            say(&format!("{name:<28} WRONG: {error:#}"));
            wrong.push(name);
        }
        Ok(())
    };
    say(&format!("{:<28} {}", "scenario", Account::HEADER));
    scenario("refused, UDP", Fate::Refused, &|| refused.send(PACKETS))?;
    let opened = wire.open_flow()?;
    scenario("established replay, UDP", pass(0), &|| {
        refused.send(PACKETS)
    })?;
    drop(opened);
    scenario("single flow, UDP", pass(1), &|| single.send(PACKETS))?;
    scenario("4000 flows, UDP", pass(flows), &|| many.send(PACKETS))?;
    scenario("single flow, UDP over IPv6", pass(1), &|| six.send(PACKETS))?;
    scenario("4000 flows, UDP over IPv6", pass(flows), &|| {
        many_six.send(PACKETS)
    })?;
    scenario("5000 flows, TCP SYN (socket)", pass(SYNS), &|| {
        Syns::to(80).send(SYNS)
    })?;
    ensure!(wrong.is_empty(), "{} does not add up", wrong.join("; "));
    Ok(())
}

/// Both NICs, and pinhole on one.
struct Wire {
    firewall: Firewall,
    /// Of the guarded NIC.
    mac: String,
    // Goes last: pinhole is in it.
    guarded: Netns,
}

impl Wire {
    fn lay() -> Result<Self> {
        let mac = address(GUARDED)?;
        let sender = address(SENDER)?;
        let guarded = Netns::new("guarded".into())?;
        for namespace in ["default", SENDER] {
            // Nothing is said on the wire that no scenario sends.
            let directory = format!("/proc/sys/net/ipv6/conf/{namespace}");
            fs::write(format!("{directory}/accept_dad"), "0")?;
            fs::write(format!("{directory}/router_solicitations"), "0")?;
        }
        ip(&format!("link set {GUARDED} netns {}\n", guarded.name()))?;
        guarded.ip(&format!(
            "addr add 192.0.2.1/24 dev {GUARDED}\n\
             addr add 2001:db8::1/64 dev {GUARDED} nodad\n\
             link set {GUARDED} up\n\
             neigh add 192.0.2.2 lladdr {sender} dev {GUARDED} nud permanent\n\
             route add blackhole {}\nroute add blackhole {}\n",
            source::SOURCES4,
            source::SOURCES6,
        ))?;
        ip(&format!(
            "addr add 192.0.2.2/24 dev {SENDER}\nlink set {SENDER} up\n\
             neigh add 192.0.2.1 lladdr {mac} dev {SENDER} nud permanent\n"
        ))?;
        let firewall =
            Firewall::start_in(&guarded, Path::new("/tmp"), "pktgen".to_owned(), POLICY)?;
        let status = firewall.json(&["status"])?;
        let mode = &status["interfaces"][0]["xdp"];
        ensure!(
            mode == "native",
            "XDP runs in {mode} mode: {}",
            firewall.said()
        );
        say(&format!(
            "pinhole on {GUARDED} (native XDP), pktgen on {SENDER}"
        ));
        // What the links said when they came up has been said by then.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Self {
            firewall,
            mac,
            guarded,
        })
    }

    /// A datagram from the guarded host to the sender's port 9, and the sockets at
    /// both ends. Its answers pass from then on.
    fn open_flow(&self) -> Result<[UdpSocket; 2]> {
        let peer = UdpSocket::bind("192.0.2.2:9")?;
        peer.set_read_timeout(Some(process::SHORT))?;
        let host = self
            .guarded
            .within(|| UdpSocket::bind("192.0.2.1:5000"))??;
        host.send_to(b"begin", "192.0.2.2:9")?;
        peer.recv(&mut [0; 16])
            .context("the datagram that begins the flow does not arrive")?;
        Ok([host, peer])
    }
}

/// The hardware address of an interface of this namespace.
fn address(interface: &str) -> Result<String> {
    let path = PathBuf::from(format!("/sys/class/net/{interface}/address"));
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Lines of `ip` commands in this namespace.
fn ip(lines: &str) -> Result<()> {
    let mut command = std::process::Command::new("ip");
    process::check_with_input(command.args(["-batch", "-"]), lines)
}
