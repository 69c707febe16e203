//! Whose pages may read the answers, where the application does not say it itself (Fetch, 3.3).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::headers::vary_by;

/// The sites that a route lets read its answers.
#[derive(Debug)]
pub struct AllowedOrigins(Vec<HeaderValue>);

impl AllowedOrigins {
    /// `None` where `origins`, as browsers send them or `*` alone, are none.
    pub fn new(origins: &[String]) -> Option<Self> {
        // What a configuration takes is visible ASCII.
        let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        (!origins.is_empty()).then_some(Self(origins))
    }

    /// Whether pages of `origin` are among them.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        self.is_everybody() || self.0.contains(origin)
    }

    /// What the answer to a request from `origin` says. One alone is named to whoever asks, of several the one that asks.
    pub fn told_to(&self, origin: Option<&HeaderValue>) -> Told {
        let allowed = match &*self.0 {
            [alone] => Some(alone),
            several => origin.and_then(|origin| several.iter().find(|allowed| *allowed == origin)),
        };
        Told { allowed: allowed.cloned(), varies: !self.is_everybody() }
    }

    fn is_everybody(&self) -> bool {
        self.0.iter().all(|origin| origin == "*")
    }
}

/// What one answer says of who may read it.
#[derive(Clone, Debug)]
pub struct Told {
    allowed: Option<HeaderValue>,
    varies: bool,
}

impl Told {
    /// Adds it to `headers`, those of an answer, unless the application has said something.
    ///
    /// A cache must not give the answer to one site to another one: `Vary` says so in those that name nobody, too.
    pub fn apply(self, headers: &mut HeaderMap) {
        if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            return;
        }
        if self.varies {
            vary_by(headers, "Origin");
        }
        if let Some(origin) = self.allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            for (name, value) in ALLOWED {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
    }
}

/// What docassemble's Apache of 2018 allowed the one other site that it knew.
const ALLOWED: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS, PUT, DELETE"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, origin"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// `Access-Control-Allow-Origin`, the number of the three fields beside it, and all of `Vary`.
    fn told(origins: &[&str], from: &str, said: &[(&'static str, &'static str)]) -> (String, usize, String) {
        let origins: Vec<_> = origins.iter().map(ToString::to_string).collect();
        let mut headers: HeaderMap =
            said.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value))).collect();
        let from = (!from.is_empty()).then(|| HeaderValue::from_str(from).unwrap());
        AllowedOrigins::new(&origins).unwrap().told_to(from.as_ref()).apply(&mut headers);
        let all = |name: HeaderName| {
            headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(", ")
        };
        let beside = ALLOWED.iter().filter(|(name, _)| headers.contains_key(name)).count();
        (all(header::ACCESS_CONTROL_ALLOW_ORIGIN), beside, all(header::VARY))
    }

    #[test]
    fn the_site_that_asks_is_named_if_it_is_one_of_several_and_caches_are_told() {
        let (one, two, other) = ("https://one.example", "https://two.example", "https://other.example");
        let both = [one, two];
        let no = String::new;
        for (origins, from, expected) in [
            (&both[..], one, (one.to_owned(), 3, "Origin".to_owned())),
            (&both, two, (two.to_owned(), 3, "Origin".to_owned())),
            (&both, other, (no(), 0, "Origin".to_owned())),
            (&both, "", (no(), 0, "Origin".to_owned())),
            (&both, "null", (no(), 0, "Origin".to_owned())),
            (&both[..1], one, (one.to_owned(), 3, "Origin".to_owned())),
            // It is no secret whom a route knows, and who does not ask has always been told.
            (&both[..1], other, (one.to_owned(), 3, "Origin".to_owned())),
            (&both[..1], "", (one.to_owned(), 3, "Origin".to_owned())),
            (&["*"], other, ("*".to_owned(), 3, no())),
            (&["*"], "", ("*".to_owned(), 3, no())),
        ] {
            assert_eq!(told(origins, from, &[]), expected, "{origins:?} {from}");
        }
    }

    #[test]
    fn what_the_application_says_stands_alone_and_a_vary_of_its_own_stays() {
        let origins = ["https://one.example", "https://two.example"];
        let said = [("access-control-allow-origin", "https://own.example")];
        assert_eq!(told(&origins, origins[0], &said), ("https://own.example".to_owned(), 0, String::new()));
        for (vary, expected) in
            [("Cookie", "Cookie, Origin"), ("Accept-Encoding, origin", "Accept-Encoding, origin"), ("*", "*")]
        {
            let (allowed, _, vary) = told(&origins, origins[1], &[("vary", vary)]);
            assert_eq!((allowed.as_str(), vary.as_str()), (origins[1], expected));
        }
    }

    #[test]
    fn a_preflight_is_answered_to_those_who_are_named_and_to_everybody_where_all_are() {
        let origins = |origins: &[&str]| {
            AllowedOrigins::new(&origins.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
        };
        let (one, other) =
            (HeaderValue::from_static("https://one.example"), HeaderValue::from_static("https://one.example:8443"));
        let named = origins(&["https://two.example", "https://one.example"]);

        assert!(named.allows(&one) && !named.allows(&other));
        assert!(origins(&["*"]).allows(&other));
        assert!(AllowedOrigins::new(&[]).is_none());
    }
}
