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

const MODES: [Mode; 5] = [Mode::Forward, Mode::Open, Mode::Nft, Mode::Pass, Mode::Fast];
const UNIT: &str = "Gbit/s";
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

/// What a stream goes through, and what came of it in each round.
struct Path {
    mode: Mode,
    field: Field,
    found: Result<Vec<f64>>,
}

/// Measures what is wanted.
///
/// # Errors
/// None: what fails is a result without a value.
pub fn run(bench: &mut Bench) -> Result<()> {
    for (name, on) in SETTINGS {
        let mut paths = Vec::new();
        for mode in MODES {
            let id = id(mode, name);
            if !bench.wants(&id) {
                continue;
            }
            bench.say(&format!("setting up: a TCP stream, {}", mode.title()));
            match Field::between_hosts(mode, on) {
                Ok(field) => paths.push(Path {
                    mode,
                    field,
                    found: Ok(Vec::new()),
                }),
                Err(error) => bench.missing(&id, UNIT, &error),
            }
        }
        if paths.is_empty() {
            continue;
        }
        bench.rounds(&format!("a TCP stream, offloads {name}"), || {
            paths.iter_mut().for_each(Path::measure);
            Ok(())
        })?;
        for path in paths {
            let id = id(path.mode, name);
            match path.found {
                // The first warmed up.
                Ok(values) => bench.add(
                    Metric::of(id, UNIT, values.get(1..).unwrap_or_default())
                        .noted("by the clock, all CPUs"),
                ),
                Err(error) => bench.missing(&id, UNIT, &error),
            }
        }
    }
    Ok(())
}

impl Path {
    fn measure(&mut self) {
        if let Ok(values) = &mut self.found {
            match stream(&self.field) {
                Ok(gbit) => values.push(gbit),
                Err(error) => self.found = Err(error),
            }
        }
    }
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
