//! Numbers as a person reads them, the same in every room.

/// 12345 -> "12,345".
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn commas_stand_between_groups_of_three() {
        let shown = [0, 999, 1_000, 12_345, u64::MAX].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "18,446,744,073,709,551,615"]);
    }
}
