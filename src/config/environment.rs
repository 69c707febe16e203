//! `${NAME}` and `${NAME:-default}` in values, from the environment.
//!
//! What comes from the environment is part of a value, never YAML syntax: a variable cannot add a key.

/// The value of a variable; `None` where it is not set.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Fills in the variables of one value; `$${` stands for `${` itself.
///
/// `${NAME:-default}` is the default where the variable is not set or empty, as in a shell.
/// `room` is how many bytes may still be filled in, over all values of a file.
pub(super) fn fill_in(text: &str, environment: Environment<'_>, room: &mut usize) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        filled.push_str(&rest[..dollar]);
        rest = &rest[dollar..];
        if let Some(after) = rest.strip_prefix("$${") {
            filled.push_str("${");
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let (inner, after) =
                after.split_once('}').ok_or("`${` is not closed; write `$${` for the two characters themselves")?;
            let value = value(inner, environment)?;
            *room = room.checked_sub(value.len()).ok_or("the variables of this file hold too much text")?;
            filled.push_str(&value);
            rest = after;
        } else {
            filled.push('$');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(inner: &str, environment: Environment<'_>) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let mut bytes = name.bytes();
    let named = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !named {
        return Err(format!("`{name}` is not the name of a variable; write `$${{` for `${{` itself"));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable `{name}` is not set; set it, or give a default: `${{{name}:-value}}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "HOST" => Some("example.com".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        fill_in(text, &environment, &mut 100)
    }

    #[test]
    fn variables_are_filled_in_wherever_they_stand() {
        for (text, expected) in [
            ("${HOST}", "example.com"),
            ("https://${HOST}/${HOST:-x}", "https://example.com/example.com"),
            ("${ABSENT:-here}", "here"),
            ("${ABSENT:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-here}", "here"),
            ("$${HOST}", "${HOST}"),
            ("a $ b $HOST $", "a $ b $HOST $"),
            ("ü${HOST}ü", "üexample.comü"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_says_why() {
        for (text, expected) in [
            (
                "${ABSENT}",
                "the environment variable `ABSENT` is not set; set it, or give a default: `${ABSENT:-value}`",
            ),
            ("${HOST", "`${` is not closed; write `$${` for the two characters themselves"),
            ("${}", "`` is not the name of a variable; write `$${` for `${` itself"),
            ("${1A}", "`1A` is not the name of a variable; write `$${` for `${` itself"),
            ("${HO ST}", "`HO ST` is not the name of a variable; write `$${` for `${` itself"),
        ] {
            assert_eq!(filled(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn a_file_of_many_variables_stays_within_its_room() {
        assert_eq!(filled(&"${HOST}".repeat(10)).unwrap_err(), "the variables of this file hold too much text");
    }
}
