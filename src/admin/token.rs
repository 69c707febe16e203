//! The token that opens the admin endpoint over TCP.

use std::fmt;

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use serde::{Deserialize, Serialize};

use crate::config::TOKEN_COMMAND as COMMAND;

/// A token, known by its SHA-256: whoever has this can tell whether a token is the one, and cannot say which one it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token([u8; digest::SHA256_OUTPUT_LEN]);

impl Token {
    /// Reads the file of a token, which has one line; blanks around it and the end of the line are no part of it.
    ///
    /// # Errors
    ///
    /// What is there can be guessed, or cannot be said in a header.
    pub fn parse(file: &[u8]) -> Result<Self, TokenFault> {
        let token = file.trim_ascii();
        match token.len() {
            length if length < SHORTEST => Err(TokenFault::Short { length }),
            length if length > LONGEST => Err(TokenFault::Long),
            _ if !is_token(token) => Err(TokenFault::Characters),
            _ => Ok(Self::of(token)),
        }
    }

    fn of(token: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, token);
        Self(hash.as_ref().try_into().expect("SHA-256 makes 32 bytes"))
    }

    /// Whether `said` is this one. How long that takes depends on `said` alone.
    pub fn matches(&self, said: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, &Self::of(said).0).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a file holds that is no token; says nothing of what it is.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenFault {
    #[error("it has {length} characters, and a token at least {SHORTEST}; make one by `{COMMAND}`")]
    Short { length: usize },
    #[error("it has more than {LONGEST} characters, which is hardly a token; make one by `{COMMAND}`")]
    Long,
    #[error("a token is one line of letters, digits and `-._~+/=`; make one by `{COMMAND}`")]
    Characters,
}

/// RFC 6750, 2.1, but for where `=` may stand.
fn is_token(token: &[u8]) -> bool {
    token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte))
}

/// Characters: of base64, 192 bits.
const SHORTEST: usize = 32;
/// Far below the bound of a head.
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Q29tcGxldGVseS9ib3JpbmcrdG9rZW4u_~-=";

    #[test]
    fn a_token_is_itself_and_nothing_near_it() {
        let token = Token::parse(format!(" {GOOD}\r\n").as_bytes()).unwrap();

        assert!(token.matches(GOOD.as_bytes()));
        for wrong in ["", &GOOD[1..], &GOOD[..GOOD.len() - 1], &GOOD.to_ascii_lowercase(), &format!("{GOOD}\n")] {
            assert!(!token.matches(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn what_can_be_guessed_or_not_be_said_is_refused_with_what_makes_a_good_one() {
        for (file, expected) in [
            (String::new(), "it has 0 characters"),
            ("x".repeat(31), "it has 31 characters"),
            ("x".repeat(1025), "more than 1024"),
            (format!("{GOOD}\n{GOOD}\n"), "one line"),
            (format!("Bearer {GOOD}"), "one line"),
            ("\u{e4}".repeat(32), "one line"),
        ] {
            let fault = Token::parse(file.as_bytes()).unwrap_err().to_string();
            assert!(fault.contains(expected) && fault.contains(COMMAND), "{fault}");
            assert!(file.is_empty() || !fault.contains(&file), "{fault}");
        }
    }
}
