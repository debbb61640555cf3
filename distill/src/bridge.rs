//! From what a teacher expects of its tokens to what that says of a student's, where the two cut text otherwise: byte-prefix
//! marginalization. A teacher's token counts for the longest token of the student's that its bytes begin with; what begins with
//! none is left for the tail, so no probability is lost and none goes to other content.
//!
//! Where a student's token ends inside one of the teacher's, the teacher's distribution is taken under what was read of it. Where
//! the student's token spans several of the teacher's, the product along them is taken off the first one's share: a lower bound of
//! the true probability, for the same bytes can be cut in other ways.
//!
//! Source: Wang et al., "Cross-Tokenizer On-Policy Distillation via Byte-Prefix Marginalization" (arXiv 2607.22334).

use limbeck_model::tokenizer::ChatTokenizer;
use std::collections::HashMap;
use std::rc::Rc;

/// Two vocabularies, and how the first is read in the second.
pub struct Bridge {
    /// A teacher's token's bytes, by id; none of special ones.
    teacher: Vec<Option<Vec<u8>>>,
    /// Ids of those that have bytes, in the order of these.
    sorted: Vec<u32>,
    student: HashMap<Vec<u8>, u32>,
    student_bytes: Vec<Option<Vec<u8>>>,
    /// Bytes of the student's longest token.
    longest: usize,
    /// Of each of the teacher's tokens, the student's that it counts for when it is read from its first byte.
    whole: Vec<Option<u32>>,
    /// What ends a turn, the teacher's and the student's.
    ends: [u32; 2],
}

/// Where a student's token begins in the teacher's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The teacher's token.
    pub token: usize,
    /// Bytes of it that the student has read.
    pub read: usize,
}

/// A distribution over the student's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    pub probs: Vec<f64>,
    /// Of content that no token of the student's begins.
    pub rest: f64,
}

impl Bridge {
    /// None where a tokenizer has no token that ends a turn.
    pub fn new(teacher: &ChatTokenizer, student: &ChatTokenizer) -> Option<Bridge> {
        let ends = [teacher.end_of_turn_id()?, student.end_of_turn_id()?];
        let bytes = |of: &ChatTokenizer| (0..of.vocab_size() as u32).map(|id| of.bytes(id)).collect();
        Some(Bridge::of(bytes(teacher), bytes(student), ends))
    }

    fn of(teacher: Vec<Option<Vec<u8>>>, student_bytes: Vec<Option<Vec<u8>>>, ends: [u32; 2]) -> Bridge {
        let filled = |bytes: &Option<Vec<u8>>| bytes.clone().filter(|bytes| !bytes.is_empty());
        let mut sorted: Vec<u32> =
            (0..teacher.len() as u32).filter(|id| filled(&teacher[*id as usize]).is_some()).collect();
        sorted.sort_by(|a, b| teacher[*a as usize].cmp(&teacher[*b as usize]));
        let mut student = HashMap::new();
        for (id, bytes) in student_bytes.iter().enumerate() {
            // Of tokens of the same bytes the first.
            if let Some(bytes) = filled(bytes) {
                student.entry(bytes).or_insert(id as u32);
            }
        }
        let longest = student.keys().map(Vec::len).max().unwrap_or(0);
        let mut bridge = Bridge { teacher, sorted, student, student_bytes, longest, whole: Vec::new(), ends };
        bridge.whole =
            (bridge.teacher.iter()).map(|bytes| bytes.as_ref().and_then(|bytes| bridge.begins(bytes))).collect();
        bridge.whole[ends[0] as usize] = Some(ends[1]);
        bridge
    }

    /// The longest of the student's tokens that the bytes begin with.
    fn begins(&self, bytes: &[u8]) -> Option<u32> {
        (1..=self.longest.min(bytes.len())).rev().find_map(|n| self.student.get(&bytes[..n]).copied())
    }

    /// Where each of the student's tokens begins in the teacher's answer; both end with what ends a turn. None where the two
    /// answers are not of the same bytes.
    pub fn align(&self, teacher: &[u32], student: &[u32]) -> Option<Vec<Place>> {
        let ([.., t_end], [.., s_end]) = (teacher, student) else { return None };
        if [*t_end, *s_end] != self.ends {
            return None;
        }
        let (last, mut places) = (teacher.len() - 1, Vec::with_capacity(student.len()));
        let mut at = self.opening(teacher, student);
        for id in &student[..student.len() - 1] {
            places.push(at);
            for byte in self.student_bytes.get(*id as usize)?.as_ref()? {
                let bytes = self.teacher.get(*teacher[..last].get(at.token)? as usize)?.as_ref()?;
                if bytes.get(at.read)? != byte {
                    return None;
                }
                at.read += 1;
                if at.read == bytes.len() {
                    at = Place { token: at.token + 1, read: 0 };
                }
            }
        }
        places.push(at);
        (at == Place { token: last, read: 0 }).then_some(places)
    }

    /// Where the student's answer begins in the teacher's: behind the space that a SentencePiece tokenizer puts before a text, where
    /// the student's puts none.
    fn opening(&self, teacher: &[u32], student: &[u32]) -> Place {
        let first = |of: &[Option<Vec<u8>>], ids: &[u32]| {
            ids.first().and_then(|id| of.get(*id as usize)?.clone()).unwrap_or_default()
        };
        let (theirs, ours) = (first(&self.teacher, teacher), first(&self.student_bytes, student));
        match theirs.first() == Some(&b' ') && ours.first().is_some_and(|byte| *byte != b' ') {
            false => Place { token: 0, read: 0 },
            true if theirs.len() == 1 => Place { token: 1, read: 0 },
            true => Place { token: 0, read: 1 },
        }
    }

    /// What the teacher expects at a place of the student's. `probs` gives its distribution over its own tokens where it
    /// predicts the given token of its `answer`; `next` is the student's token that comes.
    pub fn carry(
        &self,
        answer: &[u32],
        place: Place,
        next: u32,
        mut probs: impl FnMut(usize) -> Rc<Vec<f32>>,
    ) -> Carried {
        let here = probs(place.token);
        let here = here.as_slice();
        let mut carried = Carried { probs: vec![0.0; self.student_bytes.len()], rest: 0.0 };
        // What the teacher's own next token counts for, and how likely it is here.
        let (mut source, mut own) = (None, 0.0);
        let current = answer.get(place.token).copied().unwrap_or(self.ends[0]);
        let mut count = |id: u32, to: Option<u32>, p: f64| {
            match to {
                Some(to) => carried.probs[to as usize] += p,
                None => carried.rest += p,
            }
            if id == current {
                (source, own) = (to, p);
            }
        };
        let bytes_of = |id: u32| self.teacher.get(id as usize).and_then(Option::as_ref).map_or(&[][..], Vec::as_slice);
        if place.read == 0 {
            for (id, p) in here.iter().enumerate() {
                count(id as u32, self.whole.get(id).copied().flatten(), f64::from(*p));
            }
        } else {
            let under = self.beginning_with(&bytes_of(current)[..place.read]);
            // One that ends here has its continuation in a token of its own.
            let longer = || under.iter().copied().filter(|id| bytes_of(*id).len() > place.read);
            let p = |id: u32| f64::from(here.get(id as usize).copied().unwrap_or(0.0));
            let all: f64 = longer().map(p).sum();
            for id in longer() {
                count(id, self.begins(&bytes_of(id)[place.read..]), p(id) / all.max(f64::MIN_POSITIVE));
            }
        }
        let Some(wanted) = self.student_bytes.get(next as usize).and_then(Option::as_ref) else { return carried };
        // Tokens of the same bytes are one.
        if let Some(same) = self.student.get(wanted).filter(|same| **same != next) {
            carried.probs.swap(*same as usize, next as usize);
            source = source.map(|to: u32| if to == *same { next } else { to });
        }
        let mut read = bytes_of(current).len().saturating_sub(place.read);
        if wanted.len() > read && current != self.ends[0] {
            let (mut chain, mut at) = (own, place.token + 1);
            while chain > 0.0 {
                let (there, token) = (probs(at), answer.get(at).copied().unwrap_or(self.ends[0]));
                let there = there.as_slice();
                let p = |id: u32| f64::from(there.get(id as usize).copied().unwrap_or(0.0));
                let bytes = bytes_of(token);
                if token == self.ends[0] || read + bytes.len() >= wanted.len() {
                    chain *= self.beginning_with(&wanted[read..]).iter().map(|id| p(*id)).sum::<f64>();
                    break;
                }
                chain *= p(token);
                (read, at) = (read + bytes.len(), at + 1);
            }
            let from = match source {
                Some(to) => &mut carried.probs[to as usize],
                None => &mut carried.rest,
            };
            let chain = chain.min(*from);
            *from -= chain;
            carried.probs[next as usize] += chain;
        }
        carried
    }

    /// The teacher's tokens that begin with these bytes.
    fn beginning_with(&self, bytes: &[u8]) -> &[u32] {
        let of = |id: &u32| self.teacher[*id as usize].as_deref().unwrap_or_default();
        let from = self.sorted.partition_point(|id| of(id) < bytes);
        let n = self.sorted[from..].partition_point(|id| of(id).starts_with(bytes));
        &self.sorted[from..from + n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        teacher: Vec<Option<String>>,
        student: Vec<Option<String>>,
        ends: [u32; 2],
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        teacher_answer: Vec<u32>,
        student_answer: Vec<u32>,
        /// A row for each of the teacher's tokens.
        probs: Vec<Vec<f32>>,
        /// A row for each of the student's.
        carried: Vec<Vec<f64>>,
        rest: Vec<f64>,
    }

    /// tests/reference/byte_prefix.py, which goes by the definitions, over all of both vocabularies.
    #[test]
    fn distributions_are_the_references() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/byte_prefix.json")).unwrap();
        let bytes = |of: &[Option<String>]| of.iter().map(|t| t.as_ref().map(|t| t.clone().into_bytes())).collect();
        let bridge = Bridge::of(bytes(&golden.teacher), bytes(&golden.student), golden.ends);
        let (mut inside, mut across) = (0, 0);
        for case in &golden.cases {
            let places = bridge.align(&case.teacher_answer, &case.student_answer).unwrap();
            assert_eq!(places.len(), case.student_answer.len());
            for (i, (place, next)) in places.iter().zip(&case.student_answer).enumerate() {
                let probs = |at: usize| Rc::new(case.probs[at].clone());
                let found = bridge.carry(&case.teacher_answer, *place, *next, probs);
                for (p, want) in found.probs.iter().zip(&case.carried[i]) {
                    assert!((p - want).abs() < 1e-6, "{i}: {:?} {:?}", found.probs, case.carried[i]);
                }
                assert!((found.rest - case.rest[i]).abs() < 1e-6);
                let all = found.probs.iter().sum::<f64>() + found.rest;
                assert!((all - 1.0).abs() < 1e-5, "nothing is lost: {all}");
                inside += usize::from(place.read > 0);
                across += usize::from(places.get(i + 1).is_some_and(|p| p.token > place.token + 1));
            }
        }
        assert!(inside > 10 && across > 10, "{inside} {across}");
    }

    #[test]
    fn answers_of_other_bytes_are_not_aligned() {
        let bytes = |of: &[&str]| of.iter().map(|t| Some(t.as_bytes().to_vec()).filter(|t| !t.is_empty())).collect();
        let bridge = Bridge::of(bytes(&["", "ab", "c"]), bytes(&["a", "bc", "", "c"]), [0, 2]);
        assert_eq!(
            bridge.align(&[1, 2, 0], &[0, 1, 2]),
            Some(vec![Place { token: 0, read: 0 }, Place { token: 0, read: 1 }, Place { token: 2, read: 0 }])
        );
        // A space that only the teacher's tokenizer puts before a text, in a token of its own or not.
        let spaced = Bridge::of(bytes(&["", " ", "a", " a"]), bytes(&["a", "", " "]), [0, 1]);
        let [one, two] = [Place { token: 1, read: 0 }, Place { token: 0, read: 1 }];
        assert_eq!(spaced.align(&[1, 2, 0], &[0, 1]), Some(vec![one, Place { token: 2, read: 0 }]));
        assert_eq!(spaced.align(&[3, 0], &[0, 1]), Some(vec![two, Place { token: 1, read: 0 }]));
        assert_eq!(spaced.align(&[3, 0], &[2, 0, 1]).map(|places| places.len()), Some(3));
        for (teacher, student) in [
            (&[1, 0][..], &[0, 1, 2][..]),
            (&[1, 2, 0], &[0, 2]),
            (&[1, 2, 0], &[0, 3, 2]),
            (&[1, 2], &[0, 1, 2]),
            (&[], &[2]),
            (&[9, 0], &[0, 2]),
        ] {
            assert_eq!(bridge.align(teacher, student), None, "{teacher:?} {student:?}");
        }
    }
}
