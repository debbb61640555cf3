//! What a correction changes, word by word: an old text and a new one as parts that stayed, went out or came in.

use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// More changes than this are shown as one: the whole middle went out and came in.
const MOST: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Stayed,
    Out,
    In,
}

/// Bytes of the old text where it went out, of the new one otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub change: Change,
    pub of: Range<usize>,
}

/// The parts in order; what goes out stands before what comes in in its place.
pub fn diff(old: &str, new: &str) -> Vec<Part> {
    let (a, b) = (words(old), words(new));
    let same = |(x, y): &(&Range<usize>, &Range<usize>)| old[(*x).clone()] == new[(*y).clone()];
    let head = a.iter().zip(&b).take_while(same).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(same).count();
    let (mid_a, mid_b) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    let middle = script(
        &mid_a.iter().map(|w| &old[w.clone()]).collect::<Vec<_>>(),
        &mid_b.iter().map(|w| &new[w.clone()]).collect::<Vec<_>>(),
    );
    let steps =
        std::iter::repeat_n(Change::Stayed, head).chain(middle).chain(std::iter::repeat_n(Change::Stayed, tail));
    let mut parts: Vec<Part> = Vec::new();
    let (mut i, mut j) = (0, 0);
    for change in steps {
        let of = if change == Change::Out { a[i].clone() } else { b[j].clone() };
        i += usize::from(change != Change::In);
        j += usize::from(change != Change::Out);
        push(&mut parts, change, of);
    }
    join(parts, old, new)
}

/// Puts a word at the end, behind what went out of the same place.
fn push(parts: &mut Vec<Part>, change: Change, of: Range<usize>) {
    let hunk = parts.iter().rposition(|part| part.change == Change::Stayed).map_or(0, |i| i + 1);
    let own = if change == Change::Stayed { parts.len().saturating_sub(1) } else { hunk };
    match parts[own..].iter_mut().find(|part| part.change == change) {
        Some(part) => part.of.end = of.end,
        None if change == Change::Out => parts.insert(hunk, Part { change, of }),
        None => parts.push(Part { change, of }),
    }
}

/// Two replacements with nothing but a blank between them read better as one.
fn join(parts: Vec<Part>, old: &str, new: &str) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    let mut rest = parts.into_iter().peekable();
    while let Some(part) = rest.next() {
        let blank = part.change == Change::Stayed && new[part.of.clone()].chars().all(|c| c == ' ');
        let before = match joined.as_slice() {
            [.., out, new] if out.change == Change::Out && new.change == Change::In => joined.len() - 2,
            _ => usize::MAX,
        };
        if !blank || before == usize::MAX || rest.peek().is_none_or(|next| next.change != Change::Out) {
            joined.push(part);
            continue;
        }
        let Some(out) = rest.next() else { break };
        match rest.next_if(|next| next.change == Change::In) {
            Some(into) => {
                joined[before].of.end = out.of.end;
                joined[before + 1].of.end = into.of.end;
            }
            None => joined.extend([part, out]),
        }
    }
    debug_assert!(joined.iter().all(|p| if p.change == Change::Out {
        p.of.end <= old.len()
    } else {
        p.of.end <= new.len()
    }));
    joined
}

/// Words, blanks and signs, one after the other.
fn words(text: &str) -> Vec<Range<usize>> {
    text.split_word_bound_indices().map(|(at, word)| at..at + word.len()).collect()
}

/// The fewest words that go out and come in (Myers 1986, "An O(ND) difference algorithm and its variations").
fn script(a: &[&str], b: &[&str]) -> Vec<Change> {
    let (n, m) = (a.len() as isize, b.len() as isize);
    let most = MOST.min(a.len() + b.len()) as isize;
    // The furthest place on each diagonal x - y, after the first `d` changes; of each `d` those that it can reach.
    let mut furthest = vec![0_isize; 2 * most as usize + 3];
    let middle = most + 1;
    let mut rounds: Vec<Vec<isize>> = Vec::new();
    for d in 0..=most {
        rounds.push(furthest[(middle - d - 1) as usize..=(middle + d + 1) as usize].to_vec());
        for k in (-d..=d).step_by(2) {
            let at = (middle + k) as usize;
            let mut x = match k == -d || k != d && furthest[at - 1] < furthest[at + 1] {
                true => furthest[at + 1],
                false => furthest[at - 1] + 1,
            };
            while x < n && x - k < m && a[x as usize] == b[(x - k) as usize] {
                x += 1;
            }
            furthest[at] = x;
            if x >= n && x - k >= m {
                return walk_back(&rounds, n, m);
            }
        }
    }
    std::iter::repeat_n(Change::Out, a.len()).chain(std::iter::repeat_n(Change::In, b.len())).collect()
}

fn walk_back(rounds: &[Vec<isize>], n: isize, m: isize) -> Vec<Change> {
    let (mut x, mut y) = (n, m);
    let mut steps = Vec::new();
    for (d, furthest) in rounds.iter().enumerate().skip(1).rev() {
        let (d, k) = (d as isize, x - y);
        let of = |k: isize| furthest[(k + d + 1) as usize];
        let from = if k == -d || k != d && of(k - 1) < of(k + 1) { k + 1 } else { k - 1 };
        let (to_x, to_y) = (of(from), of(from) - from);
        while x > to_x && y > to_y {
            steps.push(Change::Stayed);
            (x, y) = (x - 1, y - 1);
        }
        steps.push(if x == to_x { Change::In } else { Change::Out });
        (x, y) = (to_x, to_y);
    }
    steps.extend(std::iter::repeat_n(Change::Stayed, x as usize));
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(old: &str, new: &str) -> String {
        let parts = diff(old, new);
        parts
            .iter()
            .map(|part| match part.change {
                Change::Stayed => new[part.of.clone()].to_string(),
                Change::Out => format!("[-{}-]", &old[part.of.clone()]),
                Change::In => format!("{{+{}+}}", &new[part.of.clone()]),
            })
            .collect()
    }

    #[test]
    fn changes_read_well() {
        let check = |old: &str, new: &str, want: &str| assert_eq!(shown(old, new), want);
        check("same text", "same text", "same text");
        check("We open at 9.", "We open at 10.", "We open at [-9-]{+10+}.");
        check("a b c d", "a x y d", "a [-b c-]{+x y+} d");
        check("one two", "two", "[-one -]two");
        check("two", "two three", "two{+ three+}");
        check("", "new", "{+new+}");
        check("old", "", "[-old-]");
        check("", "", "");
        check("Dear Ann,\nyes.", "Dear Ann,\n\nno.", "Dear Ann,\n[-yes-]{+\nno+}.");
    }

    /// The plain table, one cell for each pair of words.
    fn common(a: &[&str], b: &[&str]) -> usize {
        let mut row = vec![0; b.len() + 1];
        for x in a {
            let mut corner = 0;
            for (j, y) in b.iter().enumerate() {
                let above = row[j + 1];
                row[j + 1] = if x == y { corner + 1 } else { above.max(row[j]) };
                corner = above;
            }
        }
        row[b.len()]
    }

    proptest! {
        #[test]
        fn dropping_what_came_in_gives_the_old_text_and_what_went_out_the_new(
            old in "[ab é卡.\n]{0,30}", new in "[ab é卡.\n]{0,30}",
        ) {
            let parts = diff(&old, &new);
            let with = |change: Change, from: &str| -> String {
                let kept = parts.iter().filter(|p| p.change == Change::Stayed || p.change == change);
                kept.map(|p| if p.change == Change::Stayed { &new[p.of.clone()] } else { &from[p.of.clone()] }).collect()
            };
            prop_assert_eq!(with(Change::Out, &old), old.clone());
            prop_assert_eq!(with(Change::In, &new), new.clone());
        }

        #[test]
        fn no_script_keeps_more_words(a in prop::collection::vec("[a-c]", 0..25), b in prop::collection::vec("[a-c]", 0..25)) {
            let (a, b): (Vec<&str>, Vec<&str>) = (a.iter().map(String::as_str).collect(), b.iter().map(String::as_str).collect());
            let steps = script(&a, &b);
            let count = |change: Change| steps.iter().filter(|s| **s == change).count();
            prop_assert_eq!(count(Change::Stayed), common(&a, &b));
            prop_assert_eq!((count(Change::Stayed) + count(Change::Out), count(Change::Stayed) + count(Change::In)), (a.len(), b.len()));
        }
    }

    #[test]
    fn two_long_texts_without_a_word_in_common_are_one_change() {
        let old = "a ".repeat(3_000);
        let new = "b. ".repeat(3_000);
        assert!(diff(&old, &new).len() <= 4);
    }
}
