//! A ranking that a thread of its own works on while the desk is open, and what it makes of the desk: the new order, and
//! the items with what is known of them now. The thread prepares all of it, so that the screen only takes it over.

use super::desk::Item;
use super::queue_desk::{Decided, shown};
use limbeck_data_curation::review::Queue;
use limbeck_data_curation::review::rank::Ranking;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

pub struct Ranked {
    pub ranking: Ranking,
    /// Why it will have to be made again next time.
    pub not_kept: Option<String>,
}

/// A ranking in the making, or one that is made when it is woken.
pub struct Later {
    /// Thousandths that are done.
    told: Arc<AtomicU32>,
    made: Receiver<Result<Ranked, String>>,
    asleep: Option<Box<dyn FnOnce() + Send>>,
}

impl Later {
    /// Begins it in a new thread. `make` is given a place to tell the share that is done.
    pub fn begin(make: impl FnOnce(&(dyn Fn(f32) + Sync)) -> Result<Ranked, String> + Send + 'static) -> Later {
        let mut later = Later::asleep(make);
        if let Some(work) = later.asleep.take() {
            std::thread::spawn(work);
        }
        later
    }

    /// Begins it when the desk shows its first item: a large queue opens sooner with the processor to itself.
    pub fn asleep(make: impl FnOnce(&(dyn Fn(f32) + Sync)) -> Result<Ranked, String> + Send + 'static) -> Later {
        let (send, made) = channel();
        let told = Arc::new(AtomicU32::new(0));
        let tell = told.clone();
        let work = move || {
            let tell = |share: f32| {
                tell.fetch_max((share * 1e3) as u32, Ordering::Relaxed);
            };
            // Nobody waits any more when the desk was closed.
            send.send(make(&tell)).ok();
        };
        Later { told, made, asleep: Some(Box::new(work)) }
    }

    /// Waits a while; it comes back where that was not enough. One that failed is still to come, with the reason.
    ///
    /// # Errors
    /// The ranking in the making.
    pub fn wait(self, patience: Duration) -> Result<Ranked, Later> {
        match self.made.recv_timeout(patience) {
            Ok(Ok(ranked)) => Ok(ranked),
            Ok(Err(why)) => Err(Later::begin(move |_| Err(why))),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(self),
        }
    }
}

/// A desk in its new order.
pub struct Arranged {
    pub queue: Arc<Queue>,
    pub items: Arc<[Item]>,
    pub order: Arc<[u32]>,
    pub trouble: Option<String>,
}

/// What comes of a [`Later`] for one desk.
pub struct Coming {
    told: Arc<AtomicU32>,
    arranged: Receiver<Result<Arranged, String>>,
    /// Until the work may begin.
    gate: Option<Sender<()>>,
}

impl Coming {
    /// `decided` holds what decisions say of some items. It waits until it is woken.
    pub fn of(later: Later, queue: Arc<Queue>, items: Arc<[Item]>, decided: HashMap<usize, Decided>) -> Coming {
        let (send, arranged) = channel();
        let (gate, opened) = channel();
        let Later { told, made, asleep } = later;
        std::thread::spawn(move || {
            // A desk that was closed before wants none.
            if opened.recv().is_err() {
                return;
            }
            if let Some(work) = asleep {
                work();
            }
            let Ok(made) = made.recv() else { return };
            send.send(made.map(|ranked| arrange(ranked, &queue, &items, &decided))).ok();
        });
        Coming { told, arranged, gate: Some(gate) }
    }

    pub fn wake(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.send(()).ok();
        }
    }

    /// Per cent.
    pub fn done(&self) -> u32 {
        self.told.load(Ordering::Relaxed) / 10
    }

    /// What came: the desk in its new order, or why it stays in the old one. None while it is on its way.
    pub fn look(&self) -> Option<Result<Arranged, String>> {
        match self.arranged.try_recv() {
            Ok(arranged) => Some(arranged),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the ranking broke off; the order stays random".to_string())),
        }
    }
}

fn arrange(ranked: Ranked, queue: &Queue, items: &[Item], decided: &HashMap<usize, Decided>) -> Arranged {
    let mut queue = queue.clone();
    let order = ranked.ranking.mark(&mut queue);
    let nothing = Decided::default();
    let items = items.iter().enumerate().map(|(i, item)| {
        shown(&queue.items[i], item.message.clone(), decided.get(&i).unwrap_or(&nothing), &queue.answers)
    });
    Arranged { items: items.collect(), queue: Arc::new(queue), order: order.into(), trouble: ranked.not_kept }
}
