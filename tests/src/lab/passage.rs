//! Whether two hosts reach each other, by what TCP makes of it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::Netns;

/// Bytes of a transfer, in each direction.
const LEN: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(10);
const TRY: Duration = Duration::from_millis(1500);

/// Opens a connection from one host to a port of another, sends a megabyte there
/// and gets it back.
///
/// # Errors
/// It does not come about, or other bytes come back.
pub fn transfer(from: &Netns, to: &Netns, at: SocketAddr) -> Result<()> {
    let listener = to.listen(at)?;
    let mut near = from
        .connect(at, LIMIT)?
        .with_context(|| format!("connect to {at}"))?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_read_timeout(Some(LIMIT))?;
        end.set_write_timeout(Some(LIMIT))?;
    }
    let sent: Vec<u8> = (0..LEN).map(|at| ((at * 31) >> 3) as u8).collect();
    let echo = thread::spawn(move || echo(far));
    let mut back = vec![0; LEN];
    near.write_all(&sent).context("send")?;
    near.read_exact(&mut back).context("receive")?;
    echo.join().map_err(|_| anyhow!("the echo panicked"))??;
    ensure!(back == sent, "other bytes came back");
    Ok(())
}

fn echo(mut stream: TcpStream) -> Result<()> {
    let mut bytes = vec![0; LEN];
    stream
        .read_exact(&mut bytes)
        .context("receive at the far end")?;
    stream.write_all(&bytes).context("send back")
}

/// Is a connection from one host to an open port of another dropped without an
/// answer? `false` if it comes about.
///
/// # Errors
/// It fails in another way.
pub fn is_dropped(from: &Netns, to: &Netns, at: SocketAddr) -> Result<bool> {
    let _listener = to.listen(at)?;
    match from.connect(at, TRY)? {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == ErrorKind::TimedOut => Ok(true),
        Err(e) => Err(e).with_context(|| format!("connect to {at}")),
    }
}
