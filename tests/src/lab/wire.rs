//! Frames put on a wire as they are, and captured from it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Netns,
    process::{self, Daemon},
    server::python,
};

/// For a connection on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Arguments: interface, frames in hexadecimal.
const SEND: &str = "\
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for frame in sys.argv[2:]:
    s.send(bytes.fromhex(frame))
";

/// Arguments: interface, port, file. Writes what TCP has to do with the port, both
/// ways, until the connection's second FIN is acknowledged.
const CAPTURE: &str = "\
import socket, struct, sys, time
ALL = 3
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
s.bind((sys.argv[1], ALL))
port = int(sys.argv[2])
out = open(sys.argv[3], 'wb')
out.write(struct.pack('<IHHIIII', 0xa1b23c4d, 2, 4, 0, 0, 262144, 1))
print('capturing', flush=True)
fins = 0
while fins < 3:
    frame = s.recv(262144)
    if frame[12:14] != b'\\x08\\x00' or frame[23] != 6:
        continue
    ports, flags = struct.unpack('>HH', frame[34:38]), frame[47]
    if port not in ports:
        continue
    now = time.time_ns()
    head = struct.pack('<IIII', now // 10**9, now % 10**9, len(frame), len(frame))
    out.write(head + frame)
    if flags & 1 or fins == 2:
        fins += 1
print('done', flush=True)
";

/// Sends frames out of an interface of a namespace: they arrive at its peer.
///
/// # Errors
/// The interface is not there, or Python is not.
pub fn send(ns: &Netns, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    let mut command = ns.command(python());
    command.args(["-c", SEND, interface]);
    command.args(frames.iter().map(|frame| hex(frame)));
    process::check(&mut command).map(drop)
}

/// A frame as `pinhole why --hex` takes it.
#[must_use]
pub fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A capture that is being made.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Begins to capture one TCP connection of `port`.
    ///
    /// # Errors
    /// The interface is not there, or Python is not.
    pub fn start(ns: &Netns, interface: &str, port: u16, dir: &Path) -> Result<Self> {
        let file = dir.join("capture.pcap");
        let mut command = ns.command(python());
        command.args(["-c", CAPTURE, interface, &port.to_string()]);
        command.arg(&file);
        let daemon = Daemon::spawn(command, dir.join("capture.log"))?;
        let capture = Self { daemon, file };
        capture.await_line("capturing")?;
        Ok(capture)
    }

    /// The file, once the connection has ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.await_line("done")?;
        let ended = process::await_some("the capture is written", LIMIT, || self.daemon.ended())?;
        ensure!(ended == Some(0), "{}", self.daemon.log());
        Ok(self.file.clone())
    }

    fn await_line(&self, wanted: &str) -> Result<()> {
        process::await_some(wanted, LIMIT, || {
            self.daemon
                .log()
                .lines()
                .any(|line| line == wanted)
                .then_some(())
        })
        .with_context(|| self.daemon.log())
    }
}
