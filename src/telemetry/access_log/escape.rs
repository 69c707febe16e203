//! Bytes of a peer's choosing, made fit for a line.

use super::record::HEX;

/// Appends `bytes` as Apache's `ap_escape_logitem` does: `\"` and `\\`, `\b \n \r \t \v`, and `\xhh` for whatever else
/// is not printable ASCII.
pub(super) fn text(bytes: &[u8], line: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(plain) = rest.iter().position(|&byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')) {
        line.extend_from_slice(&rest[..plain]);
        match rest[plain] {
            byte @ (b'"' | b'\\') => line.extend_from_slice(&[b'\\', byte]),
            0x08 => line.extend_from_slice(br"\b"),
            b'\n' => line.extend_from_slice(br"\n"),
            b'\r' => line.extend_from_slice(br"\r"),
            b'\t' => line.extend_from_slice(br"\t"),
            0x0b => line.extend_from_slice(br"\v"),
            byte => hexadecimal(br"\x", byte, line),
        }
        rest = &rest[plain + 1..];
    }
    line.extend_from_slice(rest);
}

/// Appends `bytes` as the inside of a JSON string (RFC 8259, 7), without the quotes.
///
/// What is UTF-8 comes back from a parser as it was. A byte that is not comes back as the four characters `\xhh`, which
/// cannot be told from a client that sent those four.
pub(super) fn json(bytes: &[u8], line: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        json_text(chunk.valid(), line);
        for &byte in chunk.invalid() {
            hexadecimal(br"\\x", byte, line);
        }
    }
}

fn json_text(text: &str, line: &mut Vec<u8>) {
    let mut rest = text;
    // Beyond what JSON demands: DEL and the C1 controls, which a terminal obeys as it does ESC.
    while let Some((plain, found)) =
        rest.char_indices().find(|&(_, character)| character.is_control() || matches!(character, '"' | '\\'))
    {
        line.extend_from_slice(&rest.as_bytes()[..plain]);
        match found {
            '"' => line.extend_from_slice(br#"\""#),
            '\\' => line.extend_from_slice(br"\\"),
            '\n' => line.extend_from_slice(br"\n"),
            '\r' => line.extend_from_slice(br"\r"),
            '\t' => line.extend_from_slice(br"\t"),
            control => {
                let [.., high, low] = u32::from(control).to_be_bytes();
                hexadecimal(br"\u", high, line);
                hexadecimal(b"", low, line);
            }
        }
        rest = &rest[plain + found.len_utf8()..];
    }
    line.extend_from_slice(rest.as_bytes());
}

fn hexadecimal(prefix: &[u8], byte: u8, line: &mut Vec<u8>) {
    line.extend_from_slice(prefix);
    line.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut line = Vec::new();
        text(bytes, &mut line);
        String::from_utf8(line).unwrap()
    }

    fn parsed(bytes: &[u8]) -> String {
        let mut line = b"\"".to_vec();
        json(bytes, &mut line);
        line.push(b'"');
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn text_is_escaped_as_apache_does() {
        for (bytes, expected) in [
            (&b"plain /path?a=b~"[..], "plain /path?a=b~"),
            (b"", ""),
            (b"say \"hello\"", r#"say \"hello\""#),
            (br"C:\temp", r"C:\\temp"),
            (b"\x08\n\r\t\x0b", r"\b\n\r\t\v"),
            (b"\0\x07\x0c\x1b[31m\x7f", r"\x00\x07\x0c\x1b[31m\x7f"),
            ("Zürich".as_bytes(), r"Z\xc3\xbcrich"),
            (b"\xff\xfe", r"\xff\xfe"),
        ] {
            assert_eq!(escaped(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn json_keeps_utf_8_and_shows_the_bytes_that_are_not() {
        assert_eq!(parsed("Zürich \"\\\n\u{1b}\u{9b}\u{2028}".as_bytes()), "Zürich \"\\\n\u{1b}\u{9b}\u{2028}");
        assert_eq!(parsed(b"a\xffb\xe2\x82"), r"a\xffb\xe2\x82");
    }

    proptest! {
        #[test]
        fn escaped_text_is_printable_ascii_that_ends_no_quoted_string(bytes: Vec<u8>) {
            let line = escaped(&bytes);

            prop_assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
            let without_escapes = line.replace(r"\\", "").replace(r#"\""#, "");
            prop_assert!(!without_escapes.contains('"'), "{line}");
        }

        #[test]
        fn escaped_json_has_no_control_character_and_parses_back(text: String, bytes: Vec<u8>) {
            prop_assert_eq!(&parsed(text.as_bytes()), &text);

            let mut line = b"\"".to_vec();
            json(&bytes, &mut line);
            line.push(b'"');
            let line = String::from_utf8(line).unwrap();
            prop_assert!(!line.chars().any(char::is_control), "{}", line);
            serde_json::from_str::<String>(&line).unwrap();
        }
    }
}
