//! Data connections and their control connection: whose they are, what keeps which
//! alive, and what ends with which.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Family, Lab, Node,
    fake_server::Dialogue,
    pinhole::{Attach, Firewall, config, view::Flow},
    process,
};

const SOON: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(2);

/// A firewall at the server's end, and a session with a data connection through it.
struct Transfer {
    firewall: Firewall,
    dialogue: Dialogue,
    client: TcpStream,
    server: TcpStream,
    // Goes last: its nodes are in use.
    lab: Lab,
}

impl Transfer {
    /// With `more` in the policy.
    fn begin(more: &str) -> Result<Self> {
        let lab = Lab::line()?;
        let text = config::gateway(Node::FwB, true) + more;
        let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
        let mut dialogue = Dialogue::begin(&lab, Family::V4)?;
        dialogue.login()?;
        let listener = dialogue.negotiate(&lab)?;
        let at = listener.local_addr()?;
        let client = lab.ns(Node::Client).connect(at, SOON)??;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(SHORT))?;
            end.set_nodelay(true)?;
        }
        Ok(Self {
            firewall,
            dialogue,
            client,
            server,
            lab,
        })
    }

    /// Sends a few bytes to the server; false if they do not arrive.
    fn carries(&mut self) -> Result<bool> {
        self.client.write_all(b"data")?;
        let mut got = [0; 4];
        match self.server.read_exact(&mut got) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn data_ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.client.local_addr()?, self.client.peer_addr()?))
    }

    fn data_flow(&self) -> Result<Option<Flow>> {
        let ends = self.data_ends()?;
        let mut flows = self.firewall.flows()?.into_iter();
        Ok(flows.find(|flow| flow.ends() == Some(ends)))
    }
}

#[test]
fn a_data_connection_shows_its_control_connection() -> Result<()> {
    let mut transfer = Transfer::begin("")?;
    ensure!(transfer.carries()?);
    let data = transfer.data_flow()?.context("the data connection")?;
    let parent = data.parent.context("its parent")?;
    let control = transfer.dialogue.client();
    let shown = (
        SocketAddr::new(parent.client, parent.cport),
        SocketAddr::new(parent.server, parent.sport),
    );
    ensure!(shown == (control.local_addr()?, control.peer_addr()?));
    ensure!(parent.via == "PASV");
    // The control connection is nobody's, and both are the helper's.
    let flows = transfer.firewall.flows()?;
    let orphans = flows.iter().filter(|flow| flow.parent.is_none());
    ensure!(orphans.count() == 1, "{flows:?}");
    let counted = transfer
        .firewall
        .json(&["flows", "count", "--helper", "ftp"])?;
    ensure!(counted["count"] == 2, "{counted}");
    let (src, dst) = transfer.data_ends()?;
    let watch = transfer.firewall.watch(&["--helper", "ftp"])?;
    for end in [&transfer.client, &transfer.server] {
        end.shutdown(Shutdown::Write)?;
    }
    process::await_some("its end is told with its parent", SOON, || {
        let log = watch.log();
        let mut lines = log.lines().filter(|line| line.contains("TIME_WAIT"));
        lines
            .any(|line| line.contains(" parent=") && line.contains(" via=PASV"))
            .then_some(())
    })
    .with_context(|| watch.log())?;
    let listed = transfer.firewall.cli(&["flows", "list"])?.stdout;
    ensure!(listed.contains("[RELATED] PASV of "), "{listed}");
    let [src, dst] = [src, dst].map(|end| (end.ip().to_string(), end.port().to_string()));
    let mut args = vec!["flows", "get", "--proto", "tcp"];
    args.extend(["--src", &src.0, "--sport", &src.1]);
    args.extend(["--dst", &dst.0, "--dport", &dst.1]);
    let got = transfer.firewall.json(&args)?;
    ensure!(got["parent"]["via"] == "PASV", "{got}");
    Ok(())
}

/// More connections than the table has room for, twice over, come and go meanwhile.
#[test]
fn a_transfer_keeps_its_silent_control_connection() -> Result<()> {
    const TABLE: usize = 1024;
    let policy =
        format!("[timeouts]\ntcp-established = 2\n[tables]\nflows = {TABLE}\nhalf-open = 512\n");
    let mut transfer = Transfer::begin(&policy)?;
    let began = Instant::now();
    let lab = &transfer.lab;
    let service = lab.ns(Node::Server).listen(SocketAddr::new(
        // Another address of the server's: port 21 of the first is the session's.
        lab.server_ip(Family::V6),
        21,
    ))?;
    let at = service.local_addr()?;
    let mut opened = 0;
    let mut carried = 0;
    while began.elapsed() < 4 * SHORT || opened < 2 * TABLE {
        ensure!(began.elapsed() < 12 * SOON, "{opened} connections");
        for _ in 0..32 {
            let near = transfer.lab.ns(Node::Client).connect(at, SOON)??;
            let _far = service.accept()?;
            opened += 1;
            drop(near);
        }
        ensure!(transfer.carries()?, "after {:?}", began.elapsed());
        carried += 1;
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(carried > 10);
    transfer.dialogue.server_says(b"226 done\r\n")?;
    ensure!(transfer.firewall.sessions()?.len() == 1);
    // The control: nothing but its data kept it alive.
    thread::sleep(2 * SHORT);
    ensure!(transfer.dialogue.server_says(b"421 idle\r\n").is_err());
    Ok(())
}

#[test]
fn data_connections_go_on_without_their_session() -> Result<()> {
    let mut transfer = Transfer::begin("")?;
    transfer.hang_up()?;
    thread::sleep(SHORT);
    ensure!(transfer.carries()?);
    let data = transfer.data_flow()?.context("the data connection")?;
    ensure!(data.parent.is_some(), "whose it was is still known");
    Ok(())
}

#[test]
fn data_connections_are_cut_if_the_operator_says_so() -> Result<()> {
    let cut = "[ftp]\ndata-after-control = \"cut\"\ncut-after = 2\n";
    let mut transfer = Transfer::begin(cut)?;
    transfer.hang_up()?;
    ensure!(transfer.carries()?, "within the grace");
    process::await_some("the data connection is cut", SOON, || {
        transfer.data_flow().ok()?.is_none().then_some(())
    })?;
    ensure!(!transfer.carries()?);
    Ok(())
}

impl Transfer {
    /// The client closes the control connection.
    fn hang_up(&mut self) -> Result<()> {
        self.dialogue.client().shutdown(Shutdown::Both)?;
        process::await_some("the session ends", SOON, || {
            self.firewall.sessions().ok()?.is_empty().then_some(())
        })
    }
}

/// Nothing says that a flow has run out of time; its pinhole goes all the same.
#[test]
fn a_silent_sessions_pinhole_goes_when_its_time_is_over() -> Result<()> {
    let lab = Lab::line()?;
    let text = config::gateway(Node::FwB, true) + "[timeouts]\ntcp-established = 2\n";
    let firewall = Firewall::start(&lab, Node::FwB, Some(&text), Attach::default())?;
    let mut dialogue = Dialogue::begin(&lab, Family::V4)?;
    dialogue.login()?;
    let listener = dialogue.negotiate(&lab)?;
    process::await_some("the pinhole opens", SHORT, || {
        (firewall.expectations().ok()?.len() == 1).then_some(())
    })?;
    // A look every ten seconds would be too late.
    process::await_some("the pinhole goes", 3 * SHORT, || {
        firewall.expectations().ok()?.is_empty().then_some(())
    })?;
    let tried = lab
        .ns(Node::Client)
        .connect(listener.local_addr()?, SHORT)?;
    ensure!(tried.is_err_and(|error| error.kind() == ErrorKind::TimedOut));
    Ok(())
}
