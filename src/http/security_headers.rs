//! What browsers are told to be careful about, where the application does not say how it is.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::forwarded::Scheme;
use crate::config::{FrameAncestor, HstsPlan, SecurityHeadersPlan};

/// The fields that answers of one route have unless the application says otherwise.
#[derive(Clone, Debug, Default)]
pub struct SecurityHeaders {
    hsts: Option<HeaderValue>,
    nosniff: bool,
    referrer_policy: Option<HeaderValue>,
    frames: Option<Frames>,
}

#[derive(Clone, Debug)]
struct Frames {
    policy: HeaderValue,
    /// For browsers that do not know the other one, where it can be said.
    options: Option<HeaderValue>,
}

impl SecurityHeaders {
    /// `None` where `plan` says nothing.
    pub fn new(plan: &SecurityHeadersPlan) -> Option<Self> {
        // What a configuration takes is visible ASCII.
        let value = |text: &str| HeaderValue::from_str(text).ok();
        let frames = plan.frames.as_deref().and_then(|frames| {
            let sources: Vec<_> = frames.iter().map(source).collect();
            Some(Frames {
                policy: value(&format!("frame-ancestors {}", sources.join(" ")))?,
                options: match frames {
                    [FrameAncestor::None] => Some(HeaderValue::from_static("DENY")),
                    [FrameAncestor::Own] => Some(HeaderValue::from_static("SAMEORIGIN")),
                    _ => None,
                },
            })
        });
        let headers = Self {
            hsts: plan.hsts.as_ref().and_then(|hsts| value(&transport_security(hsts))),
            nosniff: plan.nosniff,
            referrer_policy: plan.referrer_policy.as_deref().and_then(value),
            frames,
        };
        (*plan != SecurityHeadersPlan::default()).then_some(headers)
    }

    /// Adds to `headers`, those of an answer, what is not said in them; nothing in them is changed.
    ///
    /// Browsers believe `Strict-Transport-Security` over https only (RFC 6797, 7.2). Who may show a page is said in two
    /// fields, of which `frame-ancestors` would win over whatever the application says in the other: where it says
    /// anything of it in either, nothing is added to it.
    pub fn apply(&self, scheme: Scheme, headers: &mut HeaderMap) {
        if scheme == Scheme::Https {
            add(headers, &header::STRICT_TRANSPORT_SECURITY, self.hsts.as_ref());
        }
        if self.nosniff {
            add(headers, &header::X_CONTENT_TYPE_OPTIONS, Some(&HeaderValue::from_static("nosniff")));
        }
        add(headers, &header::REFERRER_POLICY, self.referrer_policy.as_ref());
        if let Some(Frames { policy, options }) = &self.frames
            && !headers.contains_key(header::X_FRAME_OPTIONS)
            && !says_who_may_frame(headers)
        {
            // Beside a policy of the application's: browsers keep to each of them.
            headers.append(header::CONTENT_SECURITY_POLICY, policy.clone());
            add(headers, &header::X_FRAME_OPTIONS, options.as_ref());
        }
    }
}

fn add(headers: &mut HeaderMap, name: &HeaderName, value: Option<&HeaderValue>) {
    if let Some(value) = value
        && !headers.contains_key(name)
    {
        headers.insert(name, value.clone());
    }
}

fn says_who_may_frame(headers: &HeaderMap) -> bool {
    const DIRECTIVE: &[u8] = b"frame-ancestors";
    let policies = headers.get_all(header::CONTENT_SECURITY_POLICY).into_iter();
    let mut directives = policies.flat_map(|policy| policy.as_bytes().split(|byte| matches!(byte, b';' | b',')));
    directives.any(|directive| {
        let directive = directive.trim_ascii_start();
        directive.get(..DIRECTIVE.len()).is_some_and(|start| start.eq_ignore_ascii_case(DIRECTIVE))
    })
}

fn source(ancestor: &FrameAncestor) -> &str {
    match ancestor {
        FrameAncestor::None => "'none'",
        FrameAncestor::Own => "'self'",
        FrameAncestor::Origin(origin) => origin,
    }
}

fn transport_security(hsts: &HstsPlan) -> String {
    let mut text = format!("max-age={}", hsts.max_age.as_secs());
    if hsts.subdomains {
        text.push_str("; includeSubDomains");
    }
    if hsts.preload {
        text.push_str("; preload");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn all(frames: Vec<FrameAncestor>) -> SecurityHeaders {
        let plan = SecurityHeadersPlan {
            hsts: Some(HstsPlan { max_age: YEAR, subdomains: true, preload: false }),
            nosniff: true,
            referrer_policy: Some("same-origin".to_owned()),
            frames: Some(frames),
        };
        SecurityHeaders::new(&plan).unwrap()
    }

    fn applied(security: &SecurityHeaders, scheme: Scheme, said: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(*name, HeaderValue::from_static(value));
        }
        security.apply(scheme, &mut headers);
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn an_answer_that_says_nothing_gets_all_of_it_and_hsts_only_over_https() {
        let security = all(vec![FrameAncestor::Own]);
        let plain = [
            "content-security-policy: frame-ancestors 'self'",
            "referrer-policy: same-origin",
            "x-content-type-options: nosniff",
            "x-frame-options: SAMEORIGIN",
        ];
        assert_eq!(applied(&security, Scheme::Http, &[]), plain);
        let mut over_https = plain.to_vec();
        over_https.insert(2, "strict-transport-security: max-age=31536000; includeSubDomains");
        assert_eq!(applied(&security, Scheme::Https, &[]), over_https);
    }

    #[test]
    fn what_the_application_says_is_neither_changed_nor_contradicted() {
        let security = all(vec![FrameAncestor::Own, FrameAncestor::Origin("https://a.example".to_owned())]);
        for said in [
            ("strict-transport-security", "max-age=0"),
            ("x-content-type-options", "other"),
            ("referrer-policy", "unsafe-url"),
        ] {
            let lines = applied(&security, Scheme::Https, &[said]);
            let about: Vec<_> = lines.iter().filter(|line| line.starts_with(said.0)).collect();
            assert_eq!(about, [&format!("{}: {}", said.0, said.1)]);
        }
        let frames = |said| {
            let lines = applied(&security, Scheme::Https, said);
            lines.into_iter().filter(|line| line.to_ascii_lowercase().contains("frame")).collect::<Vec<_>>()
        };
        assert_eq!(frames(&[("x-frame-options", "DENY")]), ["x-frame-options: DENY"]);
        let own = "default-src 'self'; Frame-Ancestors https://b.example";
        assert_eq!(frames(&[("content-security-policy", own)]), [format!("content-security-policy: {own}")]);
        // One that says nothing of it has ours beside it.
        assert_eq!(
            applied(&security, Scheme::Http, &[("content-security-policy", "default-src 'self'")])[..2],
            [
                "content-security-policy: default-src 'self'",
                "content-security-policy: frame-ancestors 'self' https://a.example"
            ]
        );
    }

    #[test]
    fn a_route_that_asks_for_nothing_adds_nothing() {
        assert!(SecurityHeaders::new(&SecurityHeadersPlan::default()).is_none());
    }
}
