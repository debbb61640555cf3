//! The size that a file is to have: so many bytes, or so many bits a weight.

use std::fmt;
use std::str::FromStr;

/// `90MB`, `1.2GB` (powers of ten, as files are listed), or `4.5bpw` of the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    Bytes(u64),
    BitsPerWeight(f64),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(given: &str) -> Result<Target, String> {
        let wrong = || format!("'{given}' is no size: write it as 90MB, 1.2GB or 4.5bpw");
        let text = given.trim().to_ascii_lowercase();
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let value: f64 = number.trim_end().parse().map_err(|_| wrong())?;
        if !(value.is_finite() && value > 0.0) {
            return Err(wrong());
        }
        match &text[number.len()..] {
            "kb" => Ok(Target::Bytes((value * 1e3) as u64)),
            "mb" => Ok(Target::Bytes((value * 1e6) as u64)),
            "gb" => Ok(Target::Bytes((value * 1e9) as u64)),
            "bpw" => Ok(Target::BitsPerWeight(value)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Bytes(bytes) => write!(f, "{:.1} MB", *bytes as f64 / 1e6),
            Target::BitsPerWeight(bits) => write!(f, "{bits} bits a weight"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!("90MB".parse(), Ok(Target::Bytes(90_000_000)));
        assert_eq!(" 1.2 gb ".parse(), Ok(Target::Bytes(1_200_000_000)));
        assert_eq!("4.5bpw".parse(), Ok(Target::BitsPerWeight(4.5)));
        for wrong in ["", "90", "-1MB", "bpw", "4.5 bits", "infMB", "1e999MB"] {
            let told = wrong.parse::<Target>().unwrap_err();
            assert!(told.contains("write it as 90MB"), "{wrong}: {told}");
        }
    }
}
