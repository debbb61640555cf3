//! Work that may wait for ever on somebody else, given up when nothing is heard of it: it runs on a thread of its own, which
//! is left behind then. For a process that ends with an error soon after, that is enough.

use std::sync::mpsc;
use std::time::Duration;

/// Nothing was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Silence;

enum Heard<T, N> {
    News(N),
    Done(T),
}

/// What `work` gives, as long as no more than `silence` passes without news from it; `news` gets these on this thread.
pub(crate) fn until_silent<T: Send + 'static, N: Send + 'static>(
    silence: Duration,
    work: impl FnOnce(Box<dyn Fn(N) + Send>) -> T + Send + 'static,
    mut news: impl FnMut(N),
) -> Result<T, Silence> {
    let (sender, receiver) = mpsc::channel();
    let done = sender.clone();
    // Nobody may listen any more; then what is said does not matter.
    let tell = move |n| drop(sender.send(Heard::News(n)));
    std::thread::spawn(move || drop(done.send(Heard::Done(work(Box::new(tell))))));
    loop {
        match receiver.recv_timeout(silence) {
            Ok(Heard::News(n)) => news(n),
            Ok(Heard::Done(answer)) => return Ok(answer),
            Err(_) => return Err(Silence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn slow_work_is_waited_for_and_silent_work_is_not() {
        let mut heard = Vec::new();
        let slow = |tell: Box<dyn Fn(u32) + Send>| {
            (0..6).for_each(|i| {
                sleep(Duration::from_millis(100));
                tell(i);
            });
            7
        };
        // Longer than the patience in all, never without news for so long.
        assert_eq!(until_silent(Duration::from_millis(400), slow, |i| heard.push(i)), Ok(7));
        assert_eq!(heard, [0, 1, 2, 3, 4, 5]);
        let silent = |_: Box<dyn Fn(u32) + Send>| sleep(Duration::from_secs(600));
        assert_eq!(until_silent(Duration::from_millis(50), silent, |_| ()), Err(Silence));
    }
}
