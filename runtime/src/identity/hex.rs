//! Bytes as lower-case hexadecimal text and back: how node ids, token lines and hashes are shown. Nothing secret is
//! compared here.

use std::fmt::Write as _;

/// `bytes` as two lower-case digits each.
pub(super) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any text");
        text
    })
}

/// The bytes that `text` stands for, if it is an even number of lower-case hexadecimal digits. Upper case is refused:
/// one value has one text.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// As [`decode`], for exactly `N` bytes.
pub(super) fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    decode(text)?.try_into().ok()
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_their_text_and_nothing_else_is_text_of_bytes() {
        assert_eq!(encode(&[0, 0xaf, 0xff]), "00afff");
        assert_eq!(decode("00afff"), Some(vec![0, 0xaf, 0xff]));
        assert_eq!(decode_array::<2>("00afff"), None);
        for wrong in ["0", "0g", "AF", "é0", " 0"] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }
}
