//! The wire format of protocol buffers, as far as SentencePiece's file needs it, read with distrust: lengths are bounded by the
//! bytes that remain, nothing nests but what the caller opens, and what is malformed is refused. Source: protobuf.dev, "Encoding".

/// A field's value; the two kinds of groups, which nothing writes any more, are refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message, one after another, by number.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Fields { rest: message }
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let left = self.rest.len();
        let n = usize::try_from(n).ok().filter(|n| *n <= left);
        let n = n.ok_or_else(|| format!("a field reaches beyond its end, {left} bytes before it"))?;
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits".into())
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), String> {
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(format!("{number} is no field's number"));
        }
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => return Err(format!("field {number} is of the wire type {other}, which is not known")),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u64, Wire<'_>)>, String> {
        Fields::of(bytes).collect()
    }

    #[test]
    fn the_examples_of_the_documentation() {
        assert_eq!(read(&[0x08, 0x96, 0x01]), Ok(vec![(1, Wire::Varint(150))]));
        assert_eq!(
            read(&[0x12, 0x07, b't', b'e', b's', b't', b'i', b'n', b'g']),
            Ok(vec![(2, Wire::Bytes(b"testing"))])
        );
        let minus_two = [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&minus_two), Ok(vec![(1, Wire::Varint((-2i64).cast_unsigned()))]));
        assert_eq!(
            read(&[0x15, 1, 2, 3, 4, 0x19, 0, 0, 0, 0, 0, 0, 0, 0]),
            Ok(vec![(2, Wire::Fixed32([1, 2, 3, 4])), (3, Wire::Fixed64)])
        );
        assert_eq!(read(&[]), Ok(Vec::new()));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for (bytes, because) in [
            (&[0x08][..], "beyond its end"),
            (&[0x0a, 0x05, 1, 2], "beyond its end"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "beyond its end"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], "longer than 64 bits"),
            (&[0x80; 11], "longer than 64 bits"),
            (&[0x00, 0x01], "0 is no field's number"),
            (&[0x0b], "wire type 3"),
            (&[0x0f], "wire type 7"),
            (&[0x15, 1, 2], "beyond its end"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(because), "'{error}' does not say '{because}'");
        }
    }
}
