//! How numbers are spelled for people: shares as percent, differences as points, counts with thin groups, times and
//! money with the digits that mean something.

pub use limbeck_artifact::figures::thousands;

/// 0.9134 -> "91.3 %".
pub fn percent(share: f64) -> String {
    format!("{} %", trim(share * 100.0, 1))
}

/// 0.03 -> "3 points".
pub fn points(share: f64) -> String {
    let text = trim(share * 100.0, 1);
    let unit = if text == "1" { "point" } else { "points" };
    format!("{text} {unit}")
}

/// −0.012 -> "−1.2 points".
pub fn signed_points(share: f64) -> String {
    let text = trim(share.abs() * 100.0, 1);
    let sign = if text == "0" {
        "±"
    } else if share < 0.0 {
        "−"
    } else {
        "+"
    };
    let unit = if text == "1" { "point" } else { "points" };
    format!("{sign}{text} {unit}")
}

/// Milliseconds with three significant digits; seconds from ten of them on.
pub fn milliseconds(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{} s", significant(ms / 1000.0)) } else { format!("{} ms", significant(ms)) }
}

/// An amount of money with three significant digits, and none for what nobody would count.
pub fn money(amount: f64, currency: &str) -> String {
    if amount > 0.0 && amount < 1e-4 {
        return format!("under 0.0001 {currency}");
    }
    format!("{} {currency}", significant(amount))
}

/// As [`money`], of what may be lost as well.
pub fn signed_money(amount: f64, currency: &str) -> String {
    if amount < 0.0 { format!("−{}", money(-amount, currency)) } else { money(amount, currency) }
}

/// 3.24 -> "3.2 months".
pub fn months(months: f64) -> String {
    let text = if months < 10.0 { trim(months.max(0.1), 1) } else { significant(months) };
    format!("{text} {}", if text == "1" { "month" } else { "months" })
}

/// Three significant digits, without an exponent.
pub fn significant(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return "0".to_owned();
    }
    let magnitude = x.abs().log10().floor() as i32;
    if magnitude >= 2 {
        let rounded = x.round();
        return if rounded >= 1000.0 { thousands(rounded as u64) } else { format!("{rounded}") };
    }
    trim(x, (2 - magnitude).clamp(0, 9) as usize)
}

/// Fixed decimals without trailing zeros.
fn trim(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(percent(0.9134), "91.3 %");
        assert_eq!(percent(0.95), "95 %");
        assert_eq!(points(0.01), "1 point");
        assert_eq!(signed_points(-0.012), "−1.2 points");
        assert_eq!(signed_points(-0.0001), "±0 points");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(milliseconds(0.04256), "0.0426 ms");
        assert_eq!(milliseconds(12_345.0), "12.3 s");
        assert_eq!(money(0.000_412_3, "USD"), "0.000412 USD");
        assert_eq!(significant(999.6), "1,000");
    }
}
