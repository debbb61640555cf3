//! What asking costs, kept under a cap: before a request its worst case is set aside, afterwards what it came to is charged.
//! A request whose end nobody saw is charged in full, since the provider may do so too.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Per million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    pub input_per_1m: f64,
    pub output_per_1m: f64,
}

impl Price {
    /// Of so many tokens of prompt and answer, asked one by one.
    pub fn of(&self, prompt: u64, completion: u64) -> f64 {
        (prompt as f64 * self.input_per_1m + completion as f64 * self.output_per_1m) / 1e6
    }
}

/// A price and how much may be spent, in the price table's currency. Without a price nothing is reckoned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    pub price: Option<Price>,
    pub max_spend: Option<f64>,
}

/// Money spent and set aside.
pub(crate) struct Purse {
    budget: Budget,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    spent: f64,
    set_aside: f64,
}

/// What was set aside for a request.
#[derive(Debug)]
#[must_use]
pub(crate) struct Aside(f64);

impl Purse {
    pub fn new(budget: Budget, spent: f64) -> Purse {
        Purse { budget, state: Mutex::new(State { spent, set_aside: 0.0 }), changed: Condvar::new() }
    }

    pub fn cap(&mut self, max_spend: Option<f64>) {
        self.budget.max_spend = max_spend;
    }

    /// Sets the worst case aside. Where it does not fit because of what others have set aside, it waits for them: most come
    /// to less. None where it does not fit at all.
    pub fn set_aside(&self, prompt: u64, completion: u64) -> Option<Aside> {
        let worst = self.budget.price.map_or(0.0, |price| price.of(prompt, completion));
        let mut state = self.lock();
        if let Some(cap) = self.budget.max_spend {
            while state.spent + state.set_aside + worst > cap {
                if state.set_aside <= 0.0 || state.spent + worst > cap {
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.set_aside += worst;
        Some(Aside(worst))
    }

    /// The request came to so many tokens.
    pub fn charge(&self, aside: Aside, prompt: u64, completion: u64) {
        self.settle(aside, self.budget.price.map_or(0.0, |price| price.of(prompt, completion)));
    }

    /// The request cost nothing: it was refused, or never got there.
    pub fn give_back(&self, aside: Aside) {
        self.settle(aside, 0.0);
    }

    /// Something was paid for that was not asked from here.
    pub fn pay(&self, cost: f64) {
        self.settle(Aside(0.0), cost);
    }

    fn settle(&self, aside: Aside, cost: f64) {
        let mut state = self.lock();
        state.set_aside = (state.set_aside - aside.0).max(0.0);
        state.spent += cost;
        if state.set_aside < 1e-15 {
            state.set_aside = 0.0;
        }
        self.changed.notify_all();
    }

    pub fn spent(&self) -> f64 {
        self.lock().spent
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn purse(max_spend: f64) -> Purse {
        let price = Some(Price { input_per_1m: 1e6, output_per_1m: 2e6 });
        Purse::new(Budget { price, max_spend: Some(max_spend) }, 0.0)
    }

    #[test]
    fn what_is_set_aside_never_exceeds_the_cap_and_what_comes_cheaper_frees_the_rest() {
        let purse = purse(10.0);
        let first = purse.set_aside(2, 2).unwrap();
        purse.charge(first, 2, 0);
        assert_eq!(purse.spent(), 2.0);
        let second = purse.set_aside(4, 2).unwrap();
        std::thread::scope(|scope| {
            let third = scope.spawn(|| purse.set_aside(1, 1));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!third.is_finished(), "it waits: 2 are spent, 8 are set aside, 3 are asked for");
            purse.charge(second, 1, 1);
            let third = third.join().unwrap().unwrap();
            purse.give_back(third);
        });
        assert_eq!(purse.spent(), 5.0);
        assert!(purse.set_aside(6, 0).is_none(), "nobody else has set anything aside, so waiting won't help");
        assert!(purse.set_aside(5, 0).is_some());
    }

    #[test]
    fn without_a_price_or_a_cap_nothing_is_in_the_way() {
        let free = Purse::new(Budget::default(), 0.0);
        let aside = free.set_aside(u64::MAX / 2, 9).unwrap();
        free.charge(aside, 5, 5);
        assert_eq!(free.spent(), 0.0);
        assert_eq!(Price { input_per_1m: 3.0, output_per_1m: 15.0 }.of(1_000, 100), 0.0045);
    }
}
