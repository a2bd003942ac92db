//! A word on the terminal about what takes long.

use std::{
    io::{IsTerminal as _, stderr},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

/// What is done within it needs no word.
const SHORT: Duration = Duration::from_secs(1);

/// Does `work`; if it takes longer than a second, says on the terminal `what` is being done.
pub(super) fn saying<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if stderr().is_terminal() {
        later(SHORT, || eprintln!("{what} …"), work)
    } else {
        work()
    }
}

/// Does `work`, and `say` meanwhile if that takes longer than `limit`.
fn later<T>(limit: Duration, say: impl FnOnce() + Send, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        scope.spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        let out = work();
        drop(done);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_said_of_what_takes_long_and_of_nothing_else() {
        let (say, said) = channel();
        let slow = later(Duration::ZERO, || say.send(()).unwrap(), || said.recv());
        assert_eq!(slow, Ok(()));
        let unsaid = || panic!("it took no time");
        assert_eq!(later(Duration::from_secs(600), unsaid, || 7), 7);
    }
}
