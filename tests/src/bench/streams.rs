//! A TCP stream between two hosts' own stacks, as iperf3 measures one.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use super::{
    Bench,
    field::{Field, Mode},
    metric::Metric,
};

const MODES: [Mode; 4] = [Mode::Forward, Mode::Nft, Mode::Pass, Mode::Fast];
const PORT: u16 = 5201;
/// One measurement.
const TIME: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the stacks leave work to the card, and where they do not.
const SETTINGS: [(&str, bool); 2] = [("on", true), ("off", false)];

fn id(mode: Mode, offloads: &str) -> String {
    format!("tcp_gbit_{}_offloads_{offloads}", mode.name())
}

/// All ids.
#[must_use]
pub fn ids() -> Vec<String> {
    let of = |mode: Mode| SETTINGS.map(|(name, _)| id(mode, name));
    MODES.into_iter().flat_map(of).collect()
}

/// Measures what is wanted.
///
/// # Errors
/// Something of the lab fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    for (name, on) in SETTINGS {
        let modes: Vec<Mode> = MODES
            .into_iter()
            .filter(|&mode| bench.wants(&id(mode, name)))
            .collect();
        let mut fields = Vec::new();
        for mode in modes {
            bench.say(&format!("setting up: a TCP stream, {}", mode.title()));
            fields.push((mode, Field::between_hosts(mode, on)?, Vec::new()));
        }
        for round in 0..=bench.runs {
            for (mode, field, values) in &mut fields {
                bench.say(&format!(
                    "a TCP stream, offloads {name}: round {round} of {}",
                    bench.runs
                ));
                let gbit = stream(field).with_context(|| mode.title())?;
                if round > 0 {
                    values.push(gbit);
                }
            }
        }
        for (mode, _, values) in fields {
            let metric = Metric::of(id(mode, name), "Gbit/s", &values);
            bench.add(metric.noted("by the clock, all CPUs"));
        }
    }
    Ok(())
}

/// Gigabits a second of payload that arrive.
fn stream(field: &Field) -> Result<f64> {
    let [client, server] = field.hosts();
    let at = SocketAddr::from((field.server(), PORT));
    let listener = server.listen(at)?;
    let near = client.connect(at, PATIENCE)?.context("connect")?;
    let (far, _) = listener.accept()?;
    near.set_write_timeout(Some(PATIENCE))?;
    far.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || receive(far));
        let sent = fill(near);
        let received = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        sent.context("send")?;
        received.context("receive")
    })
}

fn fill(mut near: TcpStream) -> Result<()> {
    let (block, end) = (vec![b'x'; 1 << 17], Instant::now() + TIME);
    while Instant::now() < end {
        near.write_all(&block)?;
    }
    Ok(())
}

fn receive(mut far: TcpStream) -> Result<f64> {
    let (mut block, mut bytes) = (vec![0; 1 << 17], 0_usize);
    let began = Instant::now();
    loop {
        match far.read(&mut block) {
            Ok(0) => break,
            Ok(count) => bytes += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9)
}
