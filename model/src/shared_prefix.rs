//! What prompts have in common is computed once for a stream of calls: system prompt and template. Of prompts that come one by
//! one the first is computed whole, and from the second on the common beginning is kept.

use std::sync::{Arc, Mutex, PoisonError};

/// A shorter beginning saves nothing.
const MIN_SHARED: usize = 8;

/// The last prompt, and what is kept of its beginning: `T` is what a decoder makes of tokens, the default of none.
#[derive(Default)]
pub(crate) struct SharedPrefix<T>(Mutex<Kept<T>>);

#[derive(Default)]
struct Kept<T> {
    prompt: Vec<u32>,
    /// So many of its tokens.
    len: usize,
    made: Arc<T>,
}

impl<T: Default> SharedPrefix<T> {
    /// What is kept of the beginning of one prompt or of all of them, perhaps nothing; at least a prompt's last token is
    /// left out. `make` is asked where another beginning is to be kept.
    ///
    /// # Errors
    /// When the beginning can't be computed.
    pub fn of<E>(&self, prompts: &[&[u32]], make: impl FnOnce(&[u32]) -> Result<T, E>) -> Result<Arc<T>, E> {
        let Some((first, others)) = prompts.split_first() else { return Ok(Arc::default()) };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shortest = prompts.iter().map(|prompt| prompt.len()).min().unwrap_or(0);
        let all = others.iter().map(|other| common(first, other)).min().unwrap_or(first.len());
        let all = all.min(shortest.saturating_sub(1));
        let enough = others.is_empty() || all < last.len + MIN_SHARED;
        if last.len > 0 && all >= last.len && first[..last.len] == last.prompt[..last.len] && enough {
            return Ok(last.made.clone());
        }
        let shared = match others {
            [] => all.min(common(first, &last.prompt)),
            _ => all,
        };
        let len = if shared >= MIN_SHARED { shared } else { 0 };
        let made = if len > 0 { Arc::new(make(&first[..len])?) } else { Arc::default() };
        *last = Kept { prompt: first.to_vec(), len, made: made.clone() };
        Ok(made)
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// What is kept for some prompts, one call after another.
    fn kept(calls: &[&[&[u32]]]) -> Vec<usize> {
        let prefix = SharedPrefix::<Vec<u32>>::default();
        let len =
            |call: &&[&[u32]]| prefix.of(call, |tokens| Ok::<_, Infallible>(tokens.to_vec())).map(|made| made.len());
        calls.iter().map(|call| len(call).unwrap()).collect()
    }

    #[test]
    fn one_by_one_the_second_prompt_tells_what_is_shared() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..20).collect(), (0..12).chain([50, 51]).collect());
        assert_eq!(kept(&[&[&a], &[&b], &[&a], &[&[1, 2]], &[&a]]), [0, 12, 12, 0, 0]);
        assert_eq!(kept(&[&[&a], &[&a]]), [0, 19], "the last token is left to be read");
    }

    #[test]
    fn of_several_at_once_all_that_they_share_is_kept() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..20).collect(), (0..12).chain([50, 51]).collect());
        assert_eq!(kept(&[&[&a, &b], &[&a], &[&a, &a], &[&a, &[9]]]), [12, 12, 12, 0]);
        let long: Vec<u32> = (0..40).collect();
        assert_eq!(kept(&[&[&a, &b], &[&long, &long]]), [12, 39], "much more than before is worth another beginning");
        assert_eq!(kept(&[&[]]), [0]);
    }
}
