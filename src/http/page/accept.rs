//! In which form an answer of ours is read: by a person or by a program.

use http::{HeaderMap, header};

use crate::http::weight::thousandths;

/// In which form an answer of ours is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Html,
    Json,
}

impl Accept {
    /// What `Accept` prefers (RFC 9110, 12.5.1); `api`: the path is that of an interface for programs, see [`is_api`].
    ///
    /// JSON is sent where it has the higher quality, or the same and is named while HTML is only covered by a wildcard
    /// (`application/json, */*`, as fetch libraries send). Whoever has no preference gets the page: no `Accept`, and
    /// `*/*` alone.
    pub fn read(headers: &HeaderMap, api: bool) -> Self {
        if api {
            return Self::Json;
        }
        let (mut html, mut json) = (Preference::default(), Preference::default());
        for line in headers.get_all(header::ACCEPT) {
            for range in line.to_str().unwrap_or("").split(',') {
                let mut parts = range.split(';').map(str::trim);
                let media = parts.next().unwrap_or("").to_ascii_lowercase();
                let Some(quality) = quality(parts) else { continue };
                let offer = |specificity| Preference { specificity, quality };
                match media.as_str() {
                    "*/*" => {
                        html.consider(offer(1));
                        json.consider(offer(1));
                    }
                    "text/*" => html.consider(offer(2)),
                    "application/*" => json.consider(offer(2)),
                    "text/html" | "application/xhtml+xml" => html.consider(offer(3)),
                    "application/json" => json.consider(offer(3)),
                    other if other.starts_with("application/") && other.ends_with("+json") => json.consider(offer(3)),
                    _ => {}
                }
            }
        }
        let named = json.specificity == 3 && json.quality > 0;
        let preferred = json.quality > html.quality || (json.quality == html.quality && html.specificity < 3);
        if named && preferred { Self::Json } else { Self::Html }
    }
}

/// Whether a path has a segment `api`, as the interfaces of applications for programs do: `/da/api/session`.
pub fn is_api(path: &str) -> bool {
    path.split('/').any(|segment| segment == "api")
}

/// How much one form is wanted; the most specific range that covers it says so.
#[derive(Clone, Copy, Default)]
struct Preference {
    specificity: u8,
    /// In thousandths.
    quality: u16,
}

impl Preference {
    fn consider(&mut self, other: Self) {
        if (other.specificity, other.quality) > (self.specificity, self.quality) {
            *self = other;
        }
    }
}

/// The quality among the parameters of a media range, in thousandths; `None` when it is none (RFC 9110, 12.4.2).
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let mut pairs = parameters.filter_map(|parameter| parameter.split_once('='));
    let Some((_, value)) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("q")) else {
        return Some(1000);
    };
    thousandths(value.trim())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn accept(lines: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::ACCEPT, HeaderValue::from_str(line).unwrap());
        }
        Accept::read(&headers, false)
    }

    #[test]
    fn json_is_for_those_who_prefer_it() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (lines, expected) in [
            (vec![], Accept::Html),
            (vec![""], Accept::Html),
            (vec!["*/*"], Accept::Html),
            (vec!["application/*"], Accept::Html),
            (vec![browser], Accept::Html),
            (vec!["application/json"], Accept::Json),
            (vec!["Application/JSON; charset=utf-8"], Accept::Json),
            (vec!["application/problem+json"], Accept::Json),
            (vec!["application/json, text/javascript, */*; q=0.01"], Accept::Json),
            (vec!["application/json, text/plain, */*"], Accept::Json),
            (vec!["application/json, text/html"], Accept::Html),
            (vec!["text/html;q=0.5, application/json"], Accept::Json),
            (vec!["text/html;q=0.5", "application/json;q=0.4"], Accept::Html),
            (vec!["text/html;q=0, application/json;q=0.001"], Accept::Json),
            (vec!["application/json;q=0"], Accept::Html),
            (vec!["application/json;q=2"], Accept::Html),
            (vec!["application/json;q=x, text/html;q=0.1"], Accept::Html),
            (vec!["text/*, application/json"], Accept::Json),
        ] {
            assert_eq!(accept(&lines), expected, "{lines:?}");
        }
        assert_eq!(Accept::read(&HeaderMap::new(), true), Accept::Json);
    }

    #[test]
    fn an_interface_for_programs_is_known_by_its_path() {
        for (path, expected) in [
            ("/api/list", true),
            ("/da/api/session", true),
            ("/da/api", true),
            ("/apis", false),
            ("/da/x-api/", false),
            ("/API/", false),
        ] {
            assert_eq!(is_api(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_accept_is_read(line in "(application/json|text/html|\\*/\\*|;|,|q=|[0-9.]{1,4}|\\PC){0,12}") {
            if let Ok(value) = HeaderValue::from_bytes(line.as_bytes()) {
                let headers = HeaderMap::from_iter([(header::ACCEPT, value)]);
                let json = Accept::read(&headers, false) == Accept::Json;
                prop_assert!(!json || line.to_ascii_lowercase().contains("json"));
            }
        }
    }
}
