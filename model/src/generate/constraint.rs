//! Answers kept to a schema while they are written: which tokens of the vocabulary may come next. Asked of the schema's grammar
//! byte by byte, once for each place that an answer gets to, and kept.
//!
//! What is kept belongs to those who write with it: [`Constraint::enter`] hands out what is there, or a new beginning once that
//! has grown too large. So a server that runs for months holds no more than the limit and what its batches of the moment add.

use crate::tokenizer::ChatTokenizer;
use limbeck_artifact::schema::{At, Grammar, Schema, SchemaError};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of lists of tokens: 64 MiB.
const MOST_KEPT: usize = 16 << 20;
/// Of a grammar's places, with their lists' addresses.
const MOST_BYTES: usize = 64 << 20;
/// What a place takes in the table of lists.
const ENTRY: usize = 32;

/// The tokens that may come next, in order.
pub(super) type Allowed = Arc<[u32]>;

/// What answers are kept to. Many rows and threads share one.
pub struct Constraint {
    /// In the order of their bytes.
    tokens: Vec<Token>,
    /// Places in `tokens`, by id; none of a token that stands for no text.
    places: HashMap<u32, usize>,
    /// Nothing was asked of it.
    grammar: Grammar,
    current: Mutex<Arc<Mutex<Known>>>,
    most_bytes: usize,
}

/// A constraint as some answers go through it: places are of this value alone.
pub struct Entered<'a> {
    constraint: &'a Constraint,
    known: Arc<Mutex<Known>>,
}

struct Token {
    id: u32,
    bytes: Box<[u8]>,
    /// How many bytes it begins with as the token before it does.
    shared: usize,
}

struct Known {
    grammar: Grammar,
    allowed: HashMap<At, Allowed>,
    /// Each list once: within a text most places allow the same tokens.
    lists: HashSet<Allowed>,
    /// Tokens in `lists`, all together.
    kept: usize,
}

impl Known {
    fn new(grammar: Grammar) -> Known {
        Known { grammar, allowed: HashMap::new(), lists: HashSet::new(), kept: 0 }
    }

    fn bytes(&self) -> usize {
        self.grammar.bytes() + self.allowed.len() * ENTRY
    }
}

impl Constraint {
    /// Canonical answers under a schema, in the tokens of a vocabulary of which a model knows the first `known`.
    ///
    /// # Errors
    /// Where the schema asks for what can't be kept to.
    pub fn new(schema: &Schema, tokenizer: &ChatTokenizer, known: usize) -> Result<Constraint, SchemaError> {
        let opening = tokenizer.opening();
        let spaced = tokenizer.adds_space_prefix() && !opening.goes_on;
        let lead = if spaced { format!(" {}", opening.lead) } else { opening.lead.clone() };
        let grammar = schema.grammar(&lead)?;
        let bytes = |id: u32| Some((id, tokenizer.bytes(id)?)).filter(|(_, bytes)| !bytes.is_empty());
        let mut all: Vec<(u32, Vec<u8>)> = (0..tokenizer.vocab_size().min(known) as u32).filter_map(bytes).collect();
        all.sort_by(|(a, x), (b, y)| x.cmp(y).then(a.cmp(b)));
        let mut tokens: Vec<Token> = Vec::with_capacity(all.len());
        for (id, bytes) in all {
            let before = tokens.last().map_or(&[][..], |token| &token.bytes);
            let shared = before.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
            tokens.push(Token { id, bytes: bytes.into(), shared });
        }
        let places = tokens.iter().enumerate().map(|(place, token)| (token.id, place)).collect();
        let current = Mutex::new(Arc::new(Mutex::new(Known::new(grammar.clone()))));
        Ok(Constraint { tokens, places, grammar, current, most_bytes: MOST_BYTES })
    }

    /// The same, keeping less.
    #[must_use]
    pub fn within_bytes(self, most_bytes: usize) -> Constraint {
        Constraint { most_bytes, ..self }
    }

    /// For answers that are begun now and written to their end.
    pub fn enter(&self) -> Entered<'_> {
        let mut current = lock(&self.current);
        if lock(&current).bytes() > self.most_bytes {
            *current = Arc::new(Mutex::new(Known::new(self.grammar.clone())));
        }
        Entered { constraint: self, known: Arc::clone(&current) }
    }

    /// What the places that were asked for take, those of answers that are still written under an earlier beginning aside.
    pub fn bytes(&self) -> usize {
        lock(&lock(&self.current)).bytes()
    }

    /// Whether these are a whole answer, each token allowed where it stands.
    pub fn accepts(&self, tokens: &[u32]) -> bool {
        let entered = self.enter();
        let mut place = Some((entered.start(), false));
        for token in tokens {
            let allowed = place.filter(|(at, _)| entered.allowed(*at).binary_search(token).is_ok());
            place = allowed.and_then(|(at, _)| entered.after(at, *token));
        }
        place.is_some_and(|(_, whole)| whole)
    }

    /// Walks the tokens in the order of their bytes, so that a beginning that many share is followed once, and left once.
    fn find(&self, grammar: &mut Grammar, at: At) -> Vec<u32> {
        let mut allowed = Vec::new();
        // After so many bytes of the token that was followed last.
        let mut states = vec![at];
        let mut dead: Option<usize> = None;
        for token in &self.tokens {
            if dead.is_some_and(|length| token.shared >= length) {
                continue;
            }
            states.truncate(token.shared + 1);
            dead = None;
            for (i, byte) in token.bytes.iter().enumerate().skip(token.shared) {
                match grammar.after(states[i], *byte) {
                    Some(next) => states.push(next),
                    None => {
                        dead = Some(i + 1);
                        break;
                    }
                }
            }
            if dead.is_none() {
                allowed.push(token.id);
            }
        }
        allowed.sort_unstable();
        allowed
    }
}

impl Entered<'_> {
    /// Before anything is written.
    pub(super) fn start(&self) -> At {
        lock(&self.known).grammar.start()
    }

    /// The tokens that may come next; none where the answer is whole.
    pub(super) fn allowed(&self, at: At) -> Allowed {
        let mut known = lock(&self.known);
        if let Some(allowed) = known.allowed.get(&at) {
            return Arc::clone(allowed);
        }
        let found: Allowed = self.constraint.find(&mut known.grammar, at).into();
        let allowed = match known.lists.get(&found) {
            Some(same) => Arc::clone(same),
            None => {
                if known.kept + found.len() > MOST_KEPT {
                    known.allowed.clear();
                    known.lists.clear();
                    known.kept = 0;
                }
                known.kept += found.len();
                known.lists.insert(Arc::clone(&found));
                found
            }
        };
        known.allowed.insert(at, Arc::clone(&allowed));
        allowed
    }

    /// Where the answer is behind a token that may come next, and whether it is whole there.
    pub(super) fn after(&self, at: At, token: u32) -> Option<(At, bool)> {
        let token = &self.constraint.tokens[*self.constraint.places.get(&token)?];
        let mut known = lock(&self.known);
        let at = token.bytes.iter().try_fold(at, |at, byte| known.grammar.after(at, *byte))?;
        let whole = known.grammar.is_whole(at);
        Some((at, whole))
    }
}

/// What a thread that panicked left is as good as before: places and tokens are only added.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
