//! Threads that go through the phases of a small piece of work together: each takes tasks of a phase until none is left, and
//! the next phase begins when all are done. Nobody is waited for who has not begun, so a thread that is busy elsewhere costs
//! its help and nothing else.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Looks at the counter before the processor is offered to others, some ten microseconds: with more threads than processors a
/// member may wait for one that does not run.
const SPINS: usize = 200;

#[derive(Default)]
#[repr(align(128))]
struct Phase {
    next: AtomicUsize,
    done: AtomicUsize,
}

/// One of the threads, all of which run the same code.
pub struct Member<'a> {
    phases: &'a [Phase],
    broken: &'a AtomicBool,
}

/// Says so when a task panics, since the others would wait for it.
struct Guard<'a>(&'a AtomicBool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Member<'_> {
    /// A phase of so many tasks, done when this returns. Between phases a member does nothing that the others would see.
    pub fn share(&mut self, tasks: usize, mut work: impl FnMut(usize)) {
        let Some((phase, rest)) = self.phases.split_first() else { unreachable!("more phases than were announced") };
        self.phases = rest;
        let _guard = Guard(self.broken);
        let mut own = 0;
        loop {
            let task = phase.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(task);
            own += 1;
        }
        phase.done.fetch_add(own, Ordering::Release);
        let mut looks = 0;
        while phase.done.load(Ordering::Acquire) < tasks {
            assert!(!self.broken.load(Ordering::Relaxed), "another thread of the crew panicked");
            looks += 1;
            match looks < SPINS {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
    }
}

/// Runs `work`, which has at most `phases` phases, on this thread, and on those of the pool that are free, `threads` in all at
/// most.
pub fn together(phases: usize, threads: usize, work: impl Fn(&mut Member) + Sync) {
    let phases: Vec<Phase> = (0..phases).map(|_| Phase::default()).collect();
    let broken = AtomicBool::new(false);
    let member = || Member { phases: &phases, broken: &broken };
    let others = rayon::current_num_threads().min(threads).saturating_sub(1);
    if others == 0 {
        return work(&mut member());
    }
    rayon::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|_| work(&mut member()));
        }
        work(&mut member());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each phase reads what all tasks of the one before wrote.
    #[test]
    fn a_phase_begins_when_the_one_before_is_done() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for tasks in [0, 1, 7, 100] {
                let sums: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
                pool.install(|| {
                    together(3, 4, |crew| {
                        for (from, to) in [(0, 1), (1, 2), (2, 3)] {
                            let before = (from > 0).then(|| sums[from].load(Ordering::Relaxed));
                            crew.share(tasks, |task| {
                                assert_eq!(before.unwrap_or(0), if from > 0 { tasks * (tasks + 1) / 2 } else { 0 });
                                sums[to].fetch_add(task + 1, Ordering::Relaxed);
                            });
                        }
                    });
                });
                assert!(sums[1..].iter().all(|sum| sum.load(Ordering::Relaxed) == tasks * (tasks + 1) / 2));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_instead_of_hanging() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let fails = |task: usize| assert_ne!(task, 4, "the fifth fails");
        let run = std::panic::AssertUnwindSafe(|| pool.install(|| together(1, 3, |crew| crew.share(9, fails))));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
