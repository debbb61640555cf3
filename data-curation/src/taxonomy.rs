//! Which label an answer means. Lenient about dress (case, spaces, quotes, a closing full stop), strict about words.

/// The label that the answer is, if it is one of them.
pub fn label_of<'l>(labels: &'l [String], answer: &str) -> Option<&'l str> {
    let bare = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '.' | '*');
    let answer = answer.trim_matches(bare);
    let exact = labels.iter().find(|l| l.as_str() == answer);
    let found = exact.or_else(|| {
        let mut alike = labels.iter().filter(|l| l.to_lowercase() == answer.to_lowercase());
        // Two labels that differ in case only are told apart by case only.
        alike.next().filter(|_| alike.next().is_none())
    });
    found.map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dress_does_not_matter_and_words_do() {
        let labels = ["Refund_not_showing_up", "age_limit", "A", "a"].map(str::to_string);
        for (answer, want) in [
            ("age_limit", Some("age_limit")),
            (" `Age_Limit`.\n", Some("age_limit")),
            ("refund_not_showing_up", Some("Refund_not_showing_up")),
            ("a", Some("a")),
            ("age limit", None),
            ("age_limit_issue", None),
            ("", None),
        ] {
            assert_eq!(label_of(&labels, answer), want, "{answer}");
        }
    }
}
