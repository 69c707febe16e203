//! A file of users and the hashes of their passwords, as `htpasswd` writes it.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::BASE64_NOPAD;

/// The users of one file.
pub struct Users {
    hashes: HashMap<Box<str>, Arc<Hash>>,
    /// All of them, for names that nobody has.
    decoys: Vec<Arc<Hash>>,
    /// Which name has which decoy.
    decoy: RandomState,
}

impl Users {
    /// Reads lines of `NAME:HASH`; empty ones, and those that begin with `#`, say nothing.
    ///
    /// # Errors
    ///
    /// Every line that cannot be taken, and a file without users.
    pub fn parse(file: &[u8]) -> Result<Self, Vec<UserFault>> {
        let mut hashes = HashMap::new();
        let mut decoys = Vec::new();
        let mut faults = Vec::new();
        for (number, line) in file.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii_end();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            match parse_line(line) {
                Ok((name, _)) if hashes.contains_key(name) => {
                    let problem = format!("`{name}` stands here twice; keep one of the lines");
                    faults.push(UserFault { line: Some(number + 1), problem });
                }
                Ok((name, hash)) => {
                    let hash = Arc::new(hash);
                    decoys.push(Arc::clone(&hash));
                    hashes.insert(name.into(), hash);
                }
                Err(problem) => faults.push(UserFault { line: Some(number + 1), problem }),
            }
        }
        if hashes.is_empty() && faults.is_empty() {
            let problem = format!("there is no user in it; add one with `{COMMAND}`");
            faults.push(UserFault { line: None, problem });
        }
        if faults.is_empty() { Ok(Self { hashes, decoys, decoy: RandomState::new() }) } else { Err(faults) }
    }

    /// The hash of the password of `name`, and whether there is such a user. Where there is none, it is the hash of somebody
    /// else, always the same one for a name: looking at it takes as long as it would for a user.
    pub fn find(&self, name: &str) -> (&Arc<Hash>, bool) {
        if let Some(hash) = self.hashes.get(name) {
            return (hash, true);
        }
        let last = self.decoys.len() as u64;
        let at = usize::try_from(self.decoy.hash_one(name) % last).unwrap_or_default();
        (&self.decoys[at], false)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("count", &self.hashes.len()).finish_non_exhaustive()
    }
}

/// A line that cannot be taken; says nothing of the hash in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserFault {
    /// From 1 on; `None`: the file as a whole.
    pub line: Option<usize>,
    pub problem: String,
}

impl fmt::Display for UserFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// The hash of one password.
pub enum Hash {
    Bcrypt(Box<str>),
    Argon2id { params: Params, salt: Box<[u8]>, output: Box<[u8]> },
}

impl Hash {
    /// Whether `password` is the one. Takes a good while and, for Argon2, memory: never on a thread that carries traffic.
    pub fn matches(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Argon2id { params, salt, output } => {
                let mut made = vec![0; output.len()];
                let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
                argon2.hash_password_into(password, salt, &mut made).is_ok()
                    && verify_slices_are_equal(&made, output).is_ok()
            }
        }
    }

    /// What tells it from every other one.
    pub(super) fn identity(&self) -> &[u8] {
        match self {
            Self::Bcrypt(hash) => hash.as_bytes(),
            // The salt is random and as long as one that is never made twice.
            Self::Argon2id { output, .. } => output,
        }
    }
}

fn parse_line(line: &[u8]) -> Result<(&str, Hash), String> {
    let text = str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    let Some((name, hash)) = text.split_once(':') else {
        return Err(format!("expected `NAME:HASH`; add a user with `{COMMAND}`"));
    };
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {LONGEST_NAME} bytes and no control characters"));
    }
    parse_hash(hash).map(|hash| (name, hash)).map_err(|problem| format!("the password of `{name}` {problem}"))
}

fn parse_hash(text: &str) -> Result<Hash, String> {
    let weak = |how: &str| format!("is {how}, which is guessed too fast; make it anew with `{COMMAND}`");
    let mut parts = text.split('$');
    if parts.next() != Some("") {
        return Err(match text {
            _ if text.starts_with("{SHA}") => weak("hashed with SHA-1"),
            _ if text.len() == 13 => weak("hashed with crypt"),
            _ => format!("is not hashed; make it anew with `{COMMAND}`"),
        });
    }
    match parts.next().unwrap_or_default() {
        "2y" | "2b" | "2a" => parse_bcrypt(text),
        "argon2id" => parse_argon2(parts),
        "argon2i" | "argon2d" => {
            Err(format!("is hashed with another Argon2 than argon2id; make it anew with `{COMMAND}`"))
        }
        "apr1" | "1" => Err(weak("hashed with MD5")),
        "5" | "6" => Err(weak("hashed with crypt")),
        _ => Err(format!("is hashed in a way that is not known here; make it anew with `{COMMAND}`")),
    }
}

fn parse_bcrypt(text: &str) -> Result<Hash, String> {
    let damaged = || format!("is damaged; make it anew with `{COMMAND}`");
    let parts: bcrypt::HashParts = text.parse().map_err(|_| damaged())?;
    match parts.get_cost() {
        4..=MOST_COST => Ok(Hash::Bcrypt(text.into())),
        cost => Err(format!("takes too long to check with a cost of {cost}; make it anew with `{COMMAND}`")),
    }
}

/// `$argon2id$v=19$m=65536,t=3,p=4$SALT$HASH`, after the name.
fn parse_argon2<'t>(mut parts: impl Iterator<Item = &'t str>) -> Result<Hash, String> {
    let damaged = || format!("is damaged; make it anew with `{COMMAND}`");
    let version = parts.next().ok_or_else(damaged)?;
    if version != "v=19" {
        return Err(format!("is hashed with an old version of Argon2; make it anew with `{COMMAND}`"));
    }
    let [mut memory, mut time, mut lanes] = [None; 3];
    for pair in parts.next().ok_or_else(damaged)?.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(damaged)?;
        let place = match key {
            "m" => &mut memory,
            "t" => &mut time,
            "p" => &mut lanes,
            _ => return Err(damaged()),
        };
        *place = Some(value.parse::<u32>().map_err(|_| damaged())?);
    }
    let (Some(memory), Some(time), Some(lanes)) = (memory, time, lanes) else { return Err(damaged()) };
    let mut bytes = || BASE64_NOPAD.decode(parts.next()?.as_bytes()).ok();
    let (salt, output) = bytes().zip(bytes()).ok_or_else(damaged)?;
    if memory > MOST_MEMORY || time > MOST_TIME || lanes > MOST_LANES {
        return Err(format!(
            "takes too much to check (m={memory}, t={time}, p={lanes}); make it anew with m={MOST_MEMORY}, t={MOST_TIME}, \
             p={MOST_LANES} at most"
        ));
    }
    if !(8..=64).contains(&salt.len()) || !(16..=64).contains(&output.len()) || parts.next().is_some() {
        return Err(damaged());
    }
    let params = Params::new(memory, time, lanes, Some(output.len())).map_err(|_| damaged())?;
    Ok(Hash::Argon2id { params, salt: salt.into(), output: output.into() })
}

/// What makes a line that is taken.
const COMMAND: &str = "htpasswd -B -C 12 FILE NAME";
/// Bytes.
const LONGEST_NAME: usize = 255;
/// A second or two.
const MOST_COST: u32 = 14;
/// KiB: 128 MiB.
const MOST_MEMORY: u32 = 128 * 1024;
const MOST_TIME: u32 = 10;
const MOST_LANES: u32 = 16;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    // Of the password `secret`: by htpasswd -B -C 4, and by the reference implementation.
    pub(in super::super) const BCRYPT: &str = "$2y$04$NIXZYIuNl69lH0VtRCDYeeqUxUy3yN5brlnch8SfrK4AbEOkpl0RW";
    pub(in super::super) const ARGON2: &str =
        "$argon2id$v=19$m=64,t=1,p=2$c29tZXNhbHRzb21lc2FsdA$1H3R5jNQUbOhq9STZdurpsMsC9zjRTjgqthVhXHAYEM";

    fn faults(file: &str) -> Vec<String> {
        Users::parse(file.as_bytes()).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_kinds_of_hashes_know_their_password_and_no_other() {
        let file = format!("# staff\n\nalice:{BCRYPT}\r\nbob ray:{ARGON2}\n");
        let users = Users::parse(file.as_bytes()).unwrap();
        for name in ["alice", "bob ray"] {
            let (hash, known) = users.find(name);
            assert!(known && hash.matches(b"secret"), "{name}");
            for wrong in ["", "Secret", "secret ", "secre"] {
                assert!(!hash.matches(wrong.as_bytes()), "{name}: {wrong}");
            }
        }
    }

    #[test]
    fn a_name_that_nobody_has_is_looked_at_as_if_it_were_somebodys_and_never_known() {
        let users = Users::parse(format!("alice:{BCRYPT}\n").as_bytes()).unwrap();
        let (hash, known) = users.find("mallory");
        assert!(!known && hash.matches(b"secret"));
    }

    #[test]
    fn what_is_guessed_fast_is_refused_with_the_command_that_makes_a_good_one() {
        for (hash, expected) in [
            ("$apr1$abcdefgh$0123456789012345678901", "hashed with MD5, which is guessed too fast"),
            ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "hashed with SHA-1, which is guessed too fast"),
            ("abJnggxhB/yWI", "hashed with crypt, which is guessed too fast"),
            ("$6$salt$hash", "hashed with crypt, which is guessed too fast"),
            ("secret", "is not hashed"),
            ("$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MDEyMzQ1Njc4OTAxMjM0NQ", "another Argon2 than argon2id"),
            ("$2y$31$0000000000000000000000000000000000000000000000000000", "is damaged"),
            ("$2y$04$", "is damaged"),
            ("$argon2id$v=19$m=8,t=1$c2FsdHNhbHQ$MDEyMzQ1Njc4OTAxMjM0NQ", "is damaged"),
            ("$argon2id$v=19$m=4000000,t=1,p=1$c2FsdHNhbHQ$MDEyMzQ1Njc4OTAxMjM0NQ", "takes too much to check"),
        ] {
            let faults = faults(&format!("bob:{hash}"));
            assert_eq!(faults.len(), 1, "{hash}");
            assert!(
                faults[0].contains(expected) && faults[0].starts_with("line 1: the password of `bob` "),
                "{faults:?}"
            );
            assert!(faults[0].contains("make it anew with") && !faults[0].contains(hash), "{faults:?}");
        }
    }

    #[test]
    fn every_line_that_is_none_is_named() {
        let file = format!("alice:{BCRYPT}\nalice:{BCRYPT}\nnothing\n:{BCRYPT}\n");
        let faults = faults(&file);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].starts_with("line 2: `alice` stands here twice"));
        assert!(faults[1].starts_with("line 3: expected `NAME:HASH`"));
        assert!(faults[2].starts_with("line 4: a name has"));
    }

    #[test]
    fn a_file_without_users_is_refused() {
        assert!(faults("# nobody yet\n")[0].contains("there is no user in it"));
    }
}
