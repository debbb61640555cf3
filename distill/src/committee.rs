//! Captures of several teachers over the same rows made one: the mean of what they say, weighted where that is asked for. What the
//! student learns from it is what it would learn from one teacher with these answers.
//!
//! Posteriors over labels are averaged as probabilities (a mixture: where members are sure of different labels it is unsure, which
//! is what they know together). Of distributions over tokens only a part is kept: what a member does not list stays in the rest's
//! sum, so no probability is lost and none is made up. Draws are added up.

use limbeck_artifact::capture::{
    Answer, CHUNK, Capture, CaptureWriter, Header, Named, Position, Row, Sparse, Started, TokenRow, Told,
};
use limbeck_artifact::digest::sha256_hex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Of one token, as a capture's format has it.
const MOST_DRAWS: usize = 127;

/// A capture and its part in the mean.
pub struct Member<'a, R> {
    pub capture: &'a Capture<R>,
    pub weight: f64,
}

/// What was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    pub digest: String,
    pub rows: u64,
    /// Rows, or tokens, at which the members' likeliest answers differ, of how many.
    pub disagree: u64,
    pub of: u64,
    /// By the prompt's key, the rows among them: of labels alone.
    pub disputed: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(
        "captures can only be merged that are over the same {what}: that of {first} and that of {other} differ. Try: capture with the same --data, labels and --student"
    )]
    Differ { what: &'static str, first: String, other: String },
    #[error("a committee has two members at least, each with a weight above 0")]
    Members,
    #[error(
        "the draws of all members come to {0} at a token, and a capture holds {MOST_DRAWS}. Try: capture with fewer --draws"
    )]
    Draws(usize),
    #[error(transparent)]
    File(#[from] limbeck_artifact::Error),
}

/// # Errors
/// Captures that are not over the same prompts and labels; another file in the place of `out`; the disk.
pub fn merge_labels(members: &[Member<'_, Row>], out: &Path, program_version: &str) -> Result<Merged, MergeError> {
    let first = checked(members)?;
    let labels = &first.header.labels;
    let mut sorted = labels.clone();
    sorted.sort();
    for Member { capture, .. } in members {
        let mut theirs = capture.header.labels.clone();
        theirs.sort();
        same("labels", first, capture, theirs == sorted)?;
    }
    let at = |capture: &Capture| -> Vec<usize> {
        labels.iter().map(|label| capture.header.labels.iter().position(|l| l == label).unwrap_or(0)).collect()
    };
    let orders: Vec<Vec<usize>> = members.iter().map(|member| at(member.capture)).collect();
    let mut disputed = Vec::new();
    let rows = together(members, true)?.map(|(key, rows)| {
        let mut mean = vec![0.0f64; labels.len()];
        let mut said = BTreeSet::new();
        for ((row, weight), order) in rows.iter().zip(weights(members)).zip(&orders) {
            let posterior = row.posterior();
            let ordered = || order.iter().map(|at| posterior[*at]);
            said.extend(likeliest(ordered()));
            mean.iter_mut().zip(ordered()).for_each(|(mean, p)| *mean += weight * f64::from(p));
        }
        if said.len() > 1 {
            disputed.push(key.to_owned());
        }
        Row { key: key.to_owned(), log_probs: mean.iter().map(|p| p.ln() as f32).collect() }
    });
    let rows: Vec<Row> = rows.collect();
    let header = Header { labels: labels.clone(), ..header(members, program_version) };
    let digest = write(out, header, &rows)?;
    let of = rows.len() as u64;
    Ok(Merged { digest, rows: of, disagree: disputed.len() as u64, of, disputed })
}

/// # Errors
/// Captures that are not over the same rows, or keep distributions in different ways; another file in the place of `out`; the disk.
pub fn merge_tokens(members: &[Member<'_, TokenRow>], out: &Path, program_version: &str) -> Result<Merged, MergeError> {
    let first = checked(members)?;
    let way = |capture: &Capture<TokenRow>| match capture.header.sparse {
        Some(Sparse::Sampling { .. }) => "draws",
        _ => "likeliest",
    };
    for Member { capture, .. } in members {
        same("tokenizer", first, capture, capture.header.tokenizer == first.header.tokenizer)?;
        same("chat template", first, capture, capture.header.template == first.header.template)?;
        same("share of the distributions", first, capture, way(capture) == way(first))?;
    }
    let sparse = members.iter().filter_map(|member| member.capture.header.sparse).reduce(|a, b| match (a, b) {
        (Sparse::TopK { k }, Sparse::TopK { k: other }) => Sparse::TopK { k: k.max(other) },
        (Sparse::Sampling { draws, seed }, Sparse::Sampling { draws: other, .. }) => {
            Sparse::Sampling { draws: draws.saturating_add(other), seed }
        }
        (a, _) => a,
    });
    let draws = members.iter().map(|member| match member.capture.header.sparse {
        Some(Sparse::Sampling { draws, .. }) => usize::from(draws),
        _ => 0,
    });
    let draws: usize = draws.sum();
    if draws > MOST_DRAWS {
        return Err(MergeError::Draws(draws));
    }
    let most = match sparse {
        Some(Sparse::TopK { k }) => usize::from(k),
        _ => usize::MAX,
    };
    let (mut disagree, mut of) = (0, 0);
    let mut rows = Vec::with_capacity(first.rows.len());
    for (key, said) in together(members, false)? {
        let fits = said.iter().all(|row| row.positions.len() == said[0].positions.len());
        same("rows", first, members[1].capture, fits)?;
        let position = |i: usize| {
            let told: Vec<&Position> = said.iter().map(|row| &row.positions[i]).collect();
            disagree += u64::from(told.iter().any(|p| p.agrees != told[0].agrees));
            of += 1;
            mixture(&told, &weights(members).collect::<Vec<f64>>(), most)
        };
        rows.push(TokenRow { key: key.to_owned(), positions: (0..said[0].positions.len()).map(position).collect() });
    }
    let header = Header { sparse, rows: rows.len() as u64, ..header(members, program_version) };
    let digest = write(out, header, &rows)?;
    Ok(Merged { digest, rows: rows.len() as u64, disagree, of, disputed: Vec::new() })
}

/// What members expect at one place, as one. Of more than `most` tokens the likeliest are kept, and any that all of them list: the
/// one that came next is among these.
fn mixture(told: &[&Position], weights: &[f64], most: usize) -> Position {
    let mut mass: BTreeMap<u32, (f64, usize)> = BTreeMap::new();
    let (mut counts, mut left) = (BTreeMap::<u32, u32>::new(), 0.0);
    for (position, weight) in told.iter().zip(weights) {
        let probs = position.log_probs().into_iter().map(|l| f64::from(l).exp());
        let mut listed = 0.0;
        for (token, p) in position.tokens.iter().zip(probs) {
            listed += p;
            let of = mass.entry(*token).or_default();
            *of = (of.0 + weight * p, of.1 + 1);
        }
        left += weight * (1.0 - listed).max(0.0);
        if let Told::Drawn(drawn) = &position.told {
            position.tokens.iter().zip(drawn).for_each(|(t, n)| *counts.entry(*t).or_default() += u32::from(*n));
        }
    }
    // Of a mixture nobody knows the likeliest token where that is not listed; most members do.
    let agrees = told.iter().zip(weights).filter(|(p, _)| p.agrees).map(|(_, w)| w).sum::<f64>() > 0.5;
    if !counts.is_empty() {
        let tokens = counts.keys().copied().collect();
        let counts = counts.values().map(|n| u8::try_from(*n).unwrap_or(u8::MAX)).collect();
        return Position { agrees, tokens, told: Told::Drawn(counts) };
    }
    let mut order: Vec<(u32, f64, bool)> =
        mass.into_iter().map(|(token, (p, listed))| (token, p, listed == told.len())).collect();
    order.sort_by(|a, b| b.2.cmp(&a.2).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));
    let common = order.iter().filter(|(.., common)| *common).count();
    let keep = order.len().min(most.max(1)).max(common);
    left += order[keep..].iter().map(|(_, p, _)| p).sum::<f64>();
    order.truncate(keep);
    order.sort_by_key(|(token, ..)| *token);
    Position {
        agrees,
        tokens: order.iter().map(|(token, ..)| *token).collect(),
        told: Told::TopK {
            log_probs: order.iter().map(|(_, p, _)| p.ln() as f32).collect(),
            log_tail: left.ln() as f32,
        },
    }
}

/// The first of a committee that is one.
fn checked<'a, R: Answer>(members: &[Member<'a, R>]) -> Result<&'a Capture<R>, MergeError> {
    let positive = members.iter().all(|member| member.weight > 0.0 && member.weight.is_finite());
    match members {
        [first, _, ..] if positive => Ok(first.capture),
        _ => Err(MergeError::Members),
    }
}

fn same<R>(what: &'static str, first: &Capture<R>, other: &Capture<R>, same: bool) -> Result<(), MergeError> {
    let named = |capture: &Capture<R>| capture.header.teacher.name.clone();
    match same {
        true => Ok(()),
        false => Err(MergeError::Differ { what, first: named(first), other: named(other) }),
    }
}

/// Shares that sum to 1.
fn weights<'m, R>(members: &'m [Member<'_, R>]) -> impl Iterator<Item = f64> + 'm {
    let all: f64 = members.iter().map(|member| member.weight).sum();
    members.iter().map(move |member| member.weight / all)
}

/// A row's key, and what each member says of it.
type Said<'a, R> = (&'a str, Vec<&'a R>);

/// The rows that members have in common, in the first one's order; with `all` none may have others.
fn together<'a, R: Answer>(
    members: &[Member<'a, R>],
    all: bool,
) -> Result<impl Iterator<Item = Said<'a, R>>, MergeError> {
    let first = members[0].capture;
    let mut by_key: Vec<HashMap<&str, &R>> = Vec::new();
    for Member { capture, .. } in members {
        let rows: HashMap<&str, &R> = capture.rows.iter().map(|row| (row.key(), row)).collect();
        let shared = first.rows.iter().filter(|row| rows.contains_key(row.key())).count();
        let whole = shared == first.rows.len() && shared == rows.len();
        same("rows", first, capture, if all { whole } else { shared > 0 })?;
        by_key.push(rows);
    }
    let said = move |row: &'a R| {
        let all: Option<Vec<&R>> = by_key.iter().map(|rows| rows.get(row.key()).copied()).collect();
        Some((row.key(), all?))
    };
    Ok(first.rows.iter().filter_map(said))
}

fn likeliest(posterior: impl Iterator<Item = f32>) -> Option<usize> {
    let best = posterior.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(at, _)| at)
}

fn header<R: Answer>(members: &[Member<'_, R>], program_version: &str) -> Header {
    let first = &members[0].capture.header;
    let equal = members.iter().all(|member| member.weight == members[0].weight);
    let name = |member: &Member<'_, R>| match equal {
        true => member.capture.header.teacher.name.clone(),
        false => format!("{} · {}", member.weight, member.capture.header.teacher.name),
    };
    let one = |member: &Member<'_, R>| {
        let Header { teacher, tokenizer, template, .. } = &member.capture.header;
        format!("{} {} {tokenizer} {template}\n", member.weight, teacher.digest)
    };
    let digests: String = members.iter().map(one).collect();
    let names: Vec<String> = members.iter().map(name).collect();
    Header {
        kind: R::KIND.to_owned(),
        teacher: Named { name: names.join(" + "), digest: sha256_hex(digests.as_bytes()) },
        tokenizer: first.tokenizer.clone(),
        template: first.template.clone(),
        data: first.data.clone(),
        rows: first.rows,
        labels: Vec::new(),
        sparse: None,
        program_version: program_version.to_owned(),
    }
}

fn write<R: Answer>(out: &Path, header: Header, rows: &[R]) -> Result<String, MergeError> {
    let (mut writer, known) = match CaptureWriter::open(out, header)? {
        Started::Done(known) => return Ok(known.digest.clone()),
        Started::Open(writer, known) => (writer, known.len()),
    };
    for chunk in rows[known.min(rows.len())..].chunks(CHUNK) {
        writer.push(chunk)?;
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(teacher: &str, labels: &[&str], sparse: Option<Sparse>, rows: u64) -> Header {
        let named = |name: &str| Named { name: name.to_owned(), digest: sha256_hex(name.as_bytes()) };
        let kind = if labels.is_empty() { TokenRow::KIND } else { Row::KIND };
        Header {
            kind: kind.to_owned(),
            teacher: named(teacher),
            tokenizer: "t".to_owned(),
            template: "c".to_owned(),
            data: named("rows"),
            rows,
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            sparse,
            program_version: "0".to_owned(),
        }
    }

    fn capture<R>(header: Header, rows: Vec<R>) -> Capture<R> {
        Capture { header, rows, complete: true, bytes: 0, digest: String::new() }
    }

    fn key(i: u8) -> String {
        format!("{i:032x}")
    }

    fn labels(teacher: &str, labels: &[&str], rows: &[(u8, [f64; 3])]) -> Capture {
        let row = |(i, p): &(u8, [f64; 3])| Row { key: key(*i), log_probs: p.iter().map(|p| p.ln() as f32).collect() };
        capture(header(teacher, labels, None, rows.len() as u64), rows.iter().map(row).collect())
    }

    fn of<R>(capture: &Capture<R>) -> Member<'_, R> {
        Member { capture, weight: 1.0 }
    }

    #[test]
    fn posteriors_are_averaged_label_by_label_whatever_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let a = labels("a", &["x", "y", "z"], &[(1, [0.8, 0.1, 0.1]), (2, [0.5, 0.3, 0.2])]);
        let b = labels("b", &["z", "x", "y"], &[(2, [0.2, 0.6, 0.2]), (1, [0.7, 0.2, 0.1])]);
        let out = dir.path().join("c.capture");
        let merged = merge_labels(&[of(&a), of(&b)], &out, "0").unwrap();
        assert_eq!((merged.rows, merged.disagree, &merged.disputed), (2, 1, &vec![key(1)]));
        let read = Capture::<Row>::load(&out).unwrap();
        assert_eq!((read.header.teacher.name.as_str(), read.digest.as_str()), ("a + b", merged.digest.as_str()));
        let near = |row: usize, want: [f64; 3]| {
            for (p, want) in read.rows[row].posterior().iter().zip(want) {
                assert!((f64::from(*p) - want).abs() < 1e-3, "{p} {want}");
            }
        };
        near(0, [0.5, 0.1, 0.4]);
        near(1, [0.55, 0.25, 0.2]);
        // A member of three times the weight, and the same again from what is there.
        let heavy = [Member { capture: &a, weight: 3.0 }, of(&b)];
        let out = dir.path().join("d.capture");
        let merged = merge_labels(&heavy, &out, "0").unwrap();
        let read = Capture::<Row>::load(&out).unwrap();
        assert!(
            (f64::from(read.rows[0].posterior()[0]) - 0.65).abs() < 1e-3 && read.header.teacher.name == "3 · a + 1 · b"
        );
        assert_eq!(merge_labels(&heavy, &out, "0").unwrap(), merged);
    }

    #[test]
    fn what_is_not_over_the_same_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("c.capture");
        let a = labels("a", &["x", "y", "z"], &[(1, [0.8, 0.1, 0.1])]);
        let said = |other: &Capture| merge_labels(&[of(&a), of(other)], &out, "0").unwrap_err().to_string();
        assert!(said(&labels("b", &["x", "y", "w"], &[(1, [0.8, 0.1, 0.1])])).contains("the same labels"));
        assert!(said(&labels("b", &["x", "y", "z"], &[(2, [0.8, 0.1, 0.1])])).contains("the same rows"));
        assert!(matches!(merge_labels(&[of(&a)], &out, "0"), Err(MergeError::Members)));
        let none = [of(&a), Member { capture: &a, weight: 0.0 }];
        assert!(matches!(merge_labels(&none, &out, "0"), Err(MergeError::Members)));
        assert!(!out.exists());
    }

    #[test]
    fn token_mixtures_keep_all_probability_and_what_all_members_list() {
        let position = |tokens: &[(u32, f64)], agrees| {
            let rest = 1.0 - tokens.iter().map(|(_, p)| p).sum::<f64>();
            let log_probs = tokens.iter().map(|(_, p)| p.ln() as f32).collect();
            let told = Told::TopK { log_probs, log_tail: rest.ln() as f32 };
            Position { agrees, tokens: tokens.iter().map(|(t, _)| *t).collect(), told }
        };
        // 9 is what came next: unlikely to both, listed by both.
        let a = position(&[(1, 0.6), (2, 0.2), (9, 0.01)], false);
        let b = position(&[(2, 0.5), (3, 0.3), (9, 0.03)], false);
        let both = mixture(&[&a, &b], &[0.5, 0.5], 3);
        assert_eq!(both.tokens, [1, 2, 9], "3 is the least that not all list");
        let Told::TopK { log_probs, log_tail } = &both.told else { panic!("draws") };
        let p: Vec<f64> = log_probs.iter().map(|l| f64::from(*l).exp()).collect();
        for (p, want) in p.iter().zip([0.3, 0.35, 0.02]) {
            assert!((p - want).abs() < 1e-6, "{p} {want}");
        }
        assert!((p.iter().sum::<f64>() + f64::from(*log_tail).exp() - 1.0).abs() < 1e-6);
        let drawn = |tokens: &[u32], counts: &[u8]| Position {
            agrees: true,
            tokens: tokens.to_vec(),
            told: Told::Drawn(counts.to_vec()),
        };
        let both = mixture(&[&drawn(&[1, 4], &[30, 20]), &drawn(&[4, 7], &[10, 40])], &[0.5, 0.5], usize::MAX);
        assert_eq!((both.tokens, both.told), (vec![1, 4, 7], Told::Drawn(vec![30, 30, 40])));
    }
}
