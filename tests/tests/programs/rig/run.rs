//! BPF_PROG_RUN.

use std::sync::atomic::{AtomicUsize, Ordering};

use aya::programs::{Program, TestRun, TestRunOptions};

pub(super) fn run<P>(program: &P, frame: &[u8]) -> u32
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let options = TestRunOptions {
        data_in: Some(frame),
        ..TestRunOptions::new()
    };
    match program.test_run(options) {
        Ok(result) => result.return_value,
        Err(error) => panic!("{} bytes: {error}", frame.len()),
    }
}

/// Waits until nobody is missing. A barrier of the library would wake one thread
/// after the other, and that takes longer than a packet does.
pub(super) fn meet(missing: &AtomicUsize) {
    missing.fetch_sub(1, Ordering::AcqRel);
    while missing.load(Ordering::Acquire) > 0 {
        std::hint::spin_loop();
    }
}

pub(super) fn run_again<P>(program: &P, frame: &[u8], times: u32)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: times,
        ..TestRunOptions::new()
    };
    program.test_run(options).unwrap();
}

pub(super) fn loaded(program: &mut Program) {
    let result = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => panic!("no program of pinhole's: {other:?}"),
    };
    if let Err(error) = result {
        panic!("the verifier refuses a program: {error:#?}");
    }
}
