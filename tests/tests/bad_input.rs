//! What cannot work is refused with the reason and a remedy, exit code 2 for
//! usage and configuration and 1 for the rest, and nothing half attached.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use firewall_tests::lab::{
    Lab, Node,
    foreign::ForeignXdp,
    id,
    pinhole::{self, Attach, Firewall, config},
    process::{self, Daemon, Output},
    remains::Remains,
};

/// One that is not refused would run for ever.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn mistakes_in_the_file() -> Result<()> {
    let lab = Lab::line()?;
    let zone = "[zones.outside]\ninterfaces = [\"eth0\"]\n";
    let rule =
        |line: &str| format!("{zone}[[rule]]\naction = \"accept\"\nproto = \"tcp\"\n{line}\n");
    // What is in the file, where the mistake is, and what must be said of it.
    let cases = [
        (format!("{zone}colour = \"red\"\n"), ":3:1:", "colour"),
        (rule("dport = \"ftp\""), ":6:9:", "ftp"),
        (rule("dport = [0]"), ":6:", "0 is not a port"),
        (rule("name = 7"), ":6:8:", "expected a string"),
        (rule("src = \"300.1.2.3\""), ":6:7:", "300.1.2.3"),
        (rule("from = \"ouside\""), ":6:8:", "ouside"),
        (
            format!("{zone}[zones.inside]\ninterfaces = [\"eth1\", \"eth0\"]\n"),
            ":4:23:",
            "`outside` and `inside`",
        ),
        ("[zones.outside\n".into(), ":1:", ""),
    ];
    for (text, place, said) in cases {
        let output = run_config(&lab, Node::Server, &text)?;
        let at = format!("server.toml{place}");
        refused(&lab, Node::Server, &output, 2, &[&at, said])
            .with_context(|| format!("the file was\n{text}"))?;
        ensure!(
            output.stderr.contains("help:") || said.is_empty(),
            "{output:?}"
        );
    }
    let absent = run(&lab, Node::Server, &["--config", "/nonexistent/fw.toml"])?;
    refused(&lab, Node::Server, &absent, 2, &["/nonexistent/fw.toml"])
}

#[test]
fn mistakes_on_the_command_line() -> Result<()> {
    let lab = Lab::line()?;
    let cases: [(&[&str], &str); 6] = [
        (&["--iface", "nic-x"], "nic-x"),
        (&["--iface", "eth0", "--mode", "fast"], "fast"),
        (&["--iface", "eth0", "--tc", "fast"], "fast"),
        (&["--iface", "eth0", "--confirm", "soon"], "soon"),
        (&["--iface", "eth0", "--admit-ssh", "0"], "0"),
        (&[], "--iface"),
    ];
    for (args, said) in cases {
        let output = run(&lab, Node::Server, args)?;
        refused(&lab, Node::Server, &output, 2, &[said])?;
    }
    let text = "[zones.outside]\ninterfaces = [\"nic-y\"]\n";
    let output = run_config(&lab, Node::Server, text)?;
    refused(&lab, Node::Server, &output, 2, &["nic-y", "eth0"])
}

#[test]
fn one_unknown_interface_leaves_the_others_alone() -> Result<()> {
    let lab = Lab::line()?;
    let text =
        "[zones.inside]\ninterfaces = [\"in0\"]\n[zones.outside]\ninterfaces = [\"nic-z\"]\n";
    let output = run_config(&lab, Node::FwB, text)?;
    refused(&lab, Node::FwB, &output, 2, &["nic-z"])
}

#[test]
fn without_root() -> Result<()> {
    let lab = Lab::line()?;
    // Where any user may execute it.
    let copy = lab.dir().join("pinhole");
    fs::copy(pinhole::binary()?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let mut nobody = lab.ns(Node::Server).command("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(["run", "--iface", "eth0"]);
    let output = process::run(&mut nobody, LIMIT)?;
    refused(&lab, Node::Server, &output, 1, &["CAP_", "sudo"])
}

#[test]
fn without_btf_and_on_an_old_kernel() -> Result<()> {
    let lab = Lab::line()?;
    let output = run_disguised(&lab, "mount -t tmpfs none /sys/kernel/btf")?;
    refused(&lab, Node::Server, &output, 1, &["BTF"])?;
    let old = lab.dir().join("osrelease");
    let hide = format!("mount --bind {} /proc/sys/kernel/osrelease", old.display());
    for release in ["5.4.0-1-amd64", "5.17.15-76051715-generic"] {
        fs::write(&old, format!("{release}\n"))?;
        let output = run_disguised(&lab, &hide)?;
        let said = [release, "too old", "5.18", "live frames"];
        refused(&lab, Node::Server, &output, 1, &said)?;
    }
    Ok(())
}

/// Not bad input: what is merely not mounted, pinhole mounts itself.
#[test]
fn without_a_bpffs_it_mounts_one() -> Result<()> {
    let lab = Lab::line()?;
    let mut agent = Daemon::spawn(
        disguised(&lab, "umount /sys/fs/bpf")?,
        lab.dir().join("log"),
    )?;
    process::await_some("pinhole is ready", LIMIT, || {
        let ready = agent.log().lines().any(|line| line.starts_with("ready"));
        (ready || agent.ended().is_some()).then_some(())
    })?;
    ensure!(agent.ended().is_none(), "{}", agent.log());
    ensure!(!pins(&lab).exists(), "the pins are in the machine's bpffs");
    let guarded = Remains::find(lab.ns(Node::Server), &pins(&lab))?;
    ensure!(guarded.attached.len() == 2, "{guarded:?}");
    Ok(())
}

#[test]
fn without_a_bpffs_and_the_right_to_mount_one() -> Result<()> {
    let lab = Lab::line()?;
    let mut shell = lab.ns(Node::Server).command("unshare");
    shell.args(["--mount", "sh", "-c"]).arg(format!(
        "umount /sys/fs/bpf && exec setpriv --bounding-set=-sys_admin \
         {} --instance {} run --iface eth0",
        pinhole::binary()?.display(),
        instance(&lab),
    ));
    let output = process::run(&mut shell, LIMIT)?;
    refused(&lab, Node::Server, &output, 1, &["/sys/fs/bpf", "mount"])
}

/// Runs in a mount namespace of its own, after a command that hides something.
fn run_disguised(lab: &Lab, hide: &str) -> Result<Output> {
    process::run(&mut disguised(lab, hide)?, LIMIT)
}

fn disguised(lab: &Lab, hide: &str) -> Result<Command> {
    let mut shell = lab.ns(Node::Server).command("unshare");
    shell.args(["--mount", "sh", "-c"]).arg(format!(
        "{hide} && exec {} --instance {} run --iface eth0",
        pinhole::binary()?.display(),
        instance(lab),
    ));
    Ok(shell)
}

#[test]
fn somebody_elses_xdp_program() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    let _foreign = ForeignXdp::attach(ns, "eth0", lab.name("foreign"))?;
    let before = Remains::find(ns, Path::new(""))?;
    ensure!(!before.attached.is_empty(), "the control: it is attached");
    let output = run(&lab, Node::Server, &["--iface", "eth0"])?;
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(says(&output, "eth0") && says(&output, "XDP"), "{output:?}");
    let after = Remains::find(ns, &pins(&lab))?;
    ensure!(after == before, "{after:?}");
    Ok(())
}

/// The other end of a veth must send nothing that does not fit into one page.
#[test]
fn a_driver_that_needs_a_smaller_mtu() -> Result<()> {
    let lab = Lab::line()?;
    lab.ns(Node::FwB).ip("link set in0 mtu 9000")?;
    let remedy = ["eth0", "MTU is too large", "mtu 1500", "--mode auto"];
    refuses_native(&lab, "eth0", &remedy)?;
    // The control: it helps.
    lab.ns(Node::FwB).ip("link set in0 mtu 1500")?;
    takes_native(&lab, "eth0")
}

#[test]
fn a_driver_with_too_few_queues() -> Result<()> {
    let lab = Lab::line()?;
    lab.ns(Node::Server).ip(
        "link add few0 numrxqueues 1 numtxqueues 1 type veth peer name few1 numrxqueues 4 \
         numtxqueues 4\nlink set few0 up\nlink set few1 up",
    )?;
    let remedy = ["few0", "rx queues", "ethtool -L", "--mode auto"];
    refuses_native(&lab, "few0", &remedy)?;
    takes_native(&lab, "few1")
}

#[test]
fn a_driver_without_native_xdp() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    ns.ip("link add plain0 type bridge\nlink set plain0 up")?;
    refuses_native(&lab, "plain0", &["plain0", "no native XDP", "--mode auto"])
}

/// Native mode is refused with all of `said` and leaves nothing; left to itself, pinhole runs
/// in generic mode, and says why.
fn refuses_native(lab: &Lab, interface: &str, said: &[&str]) -> Result<()> {
    // Both ways of TC, which is attached by then.
    for tc in ["tcx", "clsact"] {
        let args = ["--iface", interface, "--mode", "native", "--tc", tc];
        let output = run(lab, Node::Server, &args)?;
        refused(lab, Node::Server, &output, 1, said)?;
    }
    let (_agent, said_then) = runs(lab, &["--iface", interface, "--mode", "auto"])?;
    ensure!(said_then.contains("XDP generic"), "{said_then}");
    for text in &said[1..said.len() - 1] {
        ensure!(
            said_then.contains(text),
            "{text:?} is not said: {said_then}"
        );
    }
    Ok(())
}

fn takes_native(lab: &Lab, interface: &str) -> Result<()> {
    let (_agent, said) = runs(lab, &["--iface", interface, "--mode", "native"])?;
    ensure!(said.contains("XDP native"), "{said}");
    Ok(())
}

/// An agent that gets ready, and what it has said until then.
fn runs(lab: &Lab, args: &[&str]) -> Result<(Running, String)> {
    let instance = instance(lab);
    let binary = pinhole::binary()?;
    let mut command = lab.ns(Node::Server).command(&binary.to_string_lossy());
    command.args(["--instance", &instance, "run"]).args(args);
    let agent = Daemon::spawn(command, lab.dir().join("log"))?;
    let mut running = Running {
        unload: lab.ns(Node::Server).command(&binary.to_string_lossy()),
        agent,
    };
    running.unload.args(["--instance", &instance, "unload"]);
    process::await_some("pinhole is ready", LIMIT, || {
        let agent = &mut running.agent;
        let ready = agent.log().lines().any(|line| line.starts_with("ready"));
        (ready || agent.ended().is_some()).then_some(())
    })?;
    let said = running.agent.log();
    ensure!(running.agent.ended().is_none(), "{said}");
    Ok((running, said))
}

/// Unloaded when dropped.
struct Running {
    agent: Daemon,
    unload: Command,
}

impl Drop for Running {
    fn drop(&mut self) {
        let unloaded = process::run(&mut self.unload, LIMIT);
        if !std::thread::panicking() {
            assert!(unloaded.is_ok_and(|output| output.success()));
        }
    }
}

/// A second instance is somebody else, too.
#[test]
fn an_interface_of_another_instance() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::Server);
    let text = config::server_host(true);
    let first = Firewall::start(&lab, Node::Server, Some(&text), Attach::default())?;
    let before = Remains::find(ns, &first.pins())?;
    let output = run(&lab, Node::Server, &["--iface", "eth0"])?;
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(says(&output, "eth0"), "{output:?}");
    ensure!(Remains::find(ns, &first.pins())? == before);
    ensure!(!pins(&lab).exists());
    Ok(())
}

#[test]
fn address_translation_on_a_gateway() -> Result<()> {
    let lab = Lab::line()?;
    let ns = lab.ns(Node::FwB);
    process::check_with_input(
        ns.command("nft").args(["-f", "-"]),
        "table ip lab-nat {\n\
           chain leave {\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             oifname \"out0\" masquerade\n\
           }\n\
         }\n",
    )?;
    let text = config::gateway(Node::FwB, true);
    let output = run_config(&lab, Node::FwB, &text)?;
    refused(&lab, Node::FwB, &output, 1, &["lab-nat", "leave"])
}

#[test]
fn maps_of_another_version() -> Result<()> {
    let lab = Lab::line()?;
    let text = config::server_host(true);
    let mut firewall = Firewall::start(&lab, Node::Server, Some(&text), Attach::default())?;
    firewall.stop_agent();
    let abi = firewall.pins().join("ABI");
    let write = |value: [&str; 4]| {
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["map", "update", "pinned"]).arg(&abi);
        bpftool.args(["key", "0", "0", "0", "0", "value"]);
        process::check(bpftool.args(value))
    };
    let version = firewall_common::abi::ABI_VERSION
        .to_le_bytes()
        .map(|b| b.to_string());
    write(["99", "0", "0", "0"])?;
    let run = firewall.start_agent().err().map(|e| format!("{e:#}"));
    let said = run.context("it took over maps of version 99")?;
    ensure!(said.contains("99") && said.contains("unload"), "{said}");
    let listed = firewall.cli(&["flows", "list"])?;
    ensure!(listed.code == Some(1) && says(&listed, "99"), "{listed:?}");
    // The control: with the right version it does.
    write([&version[0], &version[1], &version[2], &version[3]])?;
    firewall.start_agent()
}

fn run(lab: &Lab, node: Node, args: &[&str]) -> Result<Output> {
    let mut command = lab.ns(node).command(&pinhole::binary()?.to_string_lossy());
    command
        .args(["--instance", &instance(lab), "run"])
        .args(args);
    process::run(&mut command, LIMIT)
}

fn run_config(lab: &Lab, node: Node, text: &str) -> Result<Output> {
    let path = lab.dir().join(format!("{}.toml", node.name()));
    fs::write(&path, text)?;
    run(lab, node, &["--config", &path.to_string_lossy()])
}

/// The exit code, all that was to be said, and nothing left on the node.
fn refused(lab: &Lab, node: Node, output: &Output, code: i32, said: &[&str]) -> Result<()> {
    ensure!(
        output.code == Some(code),
        "exit code {code} expected: {output:?}"
    );
    for text in said {
        ensure!(says(output, text), "{text:?} is not said: {output:?}");
    }
    let left = Remains::find(lab.ns(node), &pins(lab))?;
    ensure!(left == Remains::default(), "{left:?}");
    ensure!(!pins(lab).exists(), "{} is there", pins(lab).display());
    Ok(())
}

fn says(output: &Output, text: &str) -> bool {
    output.stderr.contains(text)
}

/// Of the runs that are refused.
fn instance(lab: &Lab) -> String {
    lab.name("bad")
}

fn pins(lab: &Lab) -> PathBuf {
    Path::new(id::PINS).join(instance(lab))
}
