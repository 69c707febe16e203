//! The answers we make ourselves: a page for a person, JSON for a program.
//!
//! Each says what happened, what can be done about it and how to be found in the log; none has a script, a resource
//! from elsewhere, or the name and version of anything. Which error becomes which status is not decided here, nor
//! are fields that depend on the request, such as `Allow` with 405.

mod accept;
mod words;

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

pub use self::accept::{Accept, is_api};
use self::words::Words;
use super::{Body, GatewayError, headers};

/// An answer of our own.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    pub status: StatusCode,
    /// Shown, so that a report can be matched with the log.
    pub request_id: &'a str,
    /// A mail address.
    pub administrator: Option<&'a str>,
    /// What can be said beyond the status, such as a limit; see [`GatewayError::hint`].
    pub hint: Option<&'a str>,
    /// Sent as `Retry-After`, in whole seconds, rounded up.
    pub retry_after: Option<Duration>,
    /// The client came at a time when it has to wait for the application: the page says so instead of apologising, and looks
    /// again by itself.
    pub waiting: Option<Waiting<'a>>,
}

/// What there is to say to whoever has to wait for the application.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub stage: Stage,
    pub missing: &'a [Missing],
    /// Answers 200 when there is an end of it; the page asks there, and loads itself again then. `None`: it loads itself
    /// again from time to time.
    pub poll: Option<&'a str>,
}

/// Why there is no application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is on its way up.
    Starting,
    /// It was there, and does not answer any more.
    Gone,
    /// It, or all of the site, is being stopped.
    Stopping,
    /// Somebody has stopped it.
    Stopped,
    /// It has ended, or did not start, and nothing will start it by itself.
    Failed,
}

/// A part of the site that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub name: String,
    pub state: &'static str,
    /// For how long.
    #[serde(rename = "seconds", serialize_with = "whole_seconds")]
    pub since: Duration,
}

fn whole_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs())
}

impl<'a> Page<'a> {
    /// The page for an exchange that failed.
    pub fn of(error: &'a GatewayError, request_id: &'a str) -> Self {
        Self {
            status: error.status,
            request_id,
            administrator: None,
            hint: error.hint.as_deref(),
            retry_after: error.retry_after,
            waiting: None,
        }
    }

    /// The whole answer, not to be stored by anyone.
    pub fn response(&self, accept: Accept) -> Response<Body> {
        let (content_type, body) = self.render(accept);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let policy = if self.poll().is_some() { POLLING_SECURITY_POLICY } else { CONTENT_SECURITY_POLICY };
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        *response.body_mut() = body.into();
        response
    }

    /// The content type and the body.
    pub fn render(&self, accept: Accept) -> (&'static str, Bytes) {
        match accept {
            Accept::Html => ("text/html; charset=utf-8", self.html().into()),
            Accept::Json => ("application/json", self.json().into()),
        }
    }

    fn html(&self) -> String {
        let words = self.words();
        let mut html = String::with_capacity(TEMPLATE.len() + 1024);
        let mut rest = TEMPLATE;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").expect("each placeholder of the template is closed");
            html.push_str(before);
            html.push_str(&self.piece(name, &words));
            rest = after;
        }
        html.push_str(rest);
        html
    }

    /// What stands in the template where it says `name`.
    fn piece(&self, name: &str, words: &Words) -> String {
        match name {
            "title" => Escaped(words.title).to_string(),
            "happened" => Escaped(words.happened).to_string(),
            "advice" => Escaped(words.advice).to_string(),
            "request" => Escaped(self.request_id).to_string(),
            "refresh" if self.poll().is_some() => format!("<noscript>{}</noscript>\n", refresh()),
            "refresh" if self.waiting.is_some() => format!("{}\n", refresh()),
            "ready" => self.poll().map(|path| format!(" data-ready=\"{}\"", Escaped(path))).unwrap_or_default(),
            "script" if self.poll().is_some() => format!("<script>{SCRIPT}</script>\n"),
            "missing" => self.missing_list(),
            // A code means nothing to someone who only came too early.
            "code" if self.waiting.is_none() => format!("Code {} · ", self.status.as_u16()),
            "hint" => self.hint.map(|hint| format!("<p class=\"hint\">{}</p>\n", Escaped(hint))).unwrap_or_default(),
            // The empty reference is the address of the page itself, fetched with GET.
            "retry" if words.retry => "<p><a class=\"button\" href=\"\">Try again</a></p>\n".to_owned(),
            "administrator" => self.administrator.map(|address| self.administrator_line(address)).unwrap_or_default(),
            _ => String::new(),
        }
    }

    fn poll(&self) -> Option<&'a str> {
        self.waiting.and_then(|waiting| waiting.poll)
    }

    fn missing_list(&self) -> String {
        let missing = self.waiting.map_or(&[][..], |waiting| waiting.missing);
        let line = |Missing { name, state, since }: &Missing| {
            format!("<li><code>{}</code> {state}, for {}</li>\n", Escaped(name), Lasting(*since))
        };
        let lines: Vec<_> = missing.iter().map(line).collect();
        if lines.is_empty() { String::new() } else { format!("<ul class=\"hint\">\n{}</ul>\n", lines.concat()) }
    }

    fn administrator_line(&self, address: &str) -> String {
        let link = utf8_percent_encode(address, NOT_IN_MAILTO);
        let id = utf8_percent_encode(self.request_id, NOT_IN_MAILTO);
        format!(
            "<p>If this goes on, write to <a href=\"mailto:{link}?subject=Request%20{id}\">{}</a>.</p>\n",
            Escaped(address)
        )
    }

    fn json(&self) -> String {
        let words = self.words();
        let detail = match self.hint {
            Some(hint) => Cow::Owned(format!("{} {hint}", words.happened)),
            None => Cow::Borrowed(words.happened),
        };
        let error = JsonError {
            status: self.status.as_u16(),
            title: words.title,
            detail: &detail,
            request_id: self.request_id,
            administrator: self.administrator,
            missing: self.waiting.map_or(&[][..], |waiting| waiting.missing),
        };
        serde_json::to_string(&Json { error }).expect("text and a number are JSON")
    }

    fn words(&self) -> Words {
        self.waiting.map_or_else(|| Words::of(self.status), |waiting| Words::waiting(waiting.stage))
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        let delay = self.retry_after.or_else(|| self.waiting.map(|_| Duration::from_secs(REFRESH)))?;
        Some(headers::retry_after(delay))
    }
}

/// A time that has passed, as a person would say it.
struct Lasting(Duration);

impl fmt::Display for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (amount, unit) = match seconds {
            0..60 => return f.write_str("less than a minute"),
            60..3600 => (seconds / 60, "minute"),
            3600..86_400 => (seconds / 3600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        write!(f, "{amount} {unit}{}", if amount == 1 { "" } else { "s" })
    }
}

fn refresh() -> String {
    format!("<meta http-equiv=\"refresh\" content=\"{REFRESH}\">")
}

/// Text that is only text, between tags and in quoted attributes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            f.write_str(&rest[..at])?;
            f.write_str(match rest.as_bytes()[at] {
                b'&' => "&amp;",
                b'<' => "&lt;",
                b'>' => "&gt;",
                b'"' => "&quot;",
                _ => "&#39;",
            })?;
            rest = &rest[at + 1..];
        }
        f.write_str(rest)
    }
}

#[derive(Serialize)]
struct Json<'a> {
    error: JsonError<'a>,
}

#[derive(Serialize)]
struct JsonError<'a> {
    status: u16,
    title: &'a str,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    administrator: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Missing]>::is_empty")]
    missing: &'a [Missing],
}

const TEMPLATE: &str = include_str!("page.html");
/// Nothing but the style in the page itself.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
/// The same, and the one script that asks whether the application is ready, of this site only.
const POLLING_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src \
    'sha256-Oy6S9FcgBzYOxiQ/xq0+aDCJY5zr+CYQRii1W6AkqY8='; connect-src 'self'; base-uri 'none'; form-action 'none'";
/// Its hash is in [`POLLING_SECURITY_POLICY`].
const SCRIPT: &str = r#"(function(){var ready=document.body.dataset.ready;setInterval(function(){fetch(ready,{cache:"no-store"}).then(function(answer){if(answer.ok)location.replace(location.pathname+location.search)}).catch(function(){})},5000)})()"#;
/// Seconds between two looks at a starting application.
const REFRESH: u64 = 10;
/// Everything a mail address in a link does not need as it is (RFC 6068).
const NOT_IN_MAILTO: &AsciiSet = &NON_ALPHANUMERIC.remove(b'@').remove(b'.').remove(b'-').remove(b'_').remove(b'+');

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    const STATUSES: [u16; 16] = [400, 404, 405, 408, 413, 414, 417, 421, 429, 431, 500, 501, 502, 503, 504, 505];

    fn page(status: u16) -> Page<'static> {
        Page {
            status: StatusCode::from_u16(status).unwrap(),
            request_id: "01J9ZK3M5T",
            administrator: Some("admin@example.com"),
            hint: None,
            retry_after: None,
            waiting: None,
        }
    }

    fn html(page: &Page<'_>) -> String {
        String::from_utf8(page.render(Accept::Html).1.to_vec()).unwrap()
    }

    fn json(page: &Page<'_>) -> serde_json::Value {
        serde_json::from_slice(&page.render(Accept::Json).1).unwrap()
    }

    #[test]
    fn each_status_has_words_of_its_own() {
        let other = page(418).words().happened;
        let mut seen = std::collections::HashSet::new();
        for status in STATUSES {
            let words = page(status).words();
            assert!(seen.insert(words.happened), "{status}: {}", words.happened);
            assert_ne!(words.happened, other, "{status}");
        }
    }

    #[test]
    fn a_page_names_the_request_the_administrator_and_what_to_do() {
        for status in STATUSES {
            let html = html(&page(status));
            let words = page(status).words();
            for text in [words.title, words.happened, words.advice] {
                assert!(html.contains(text), "{html}");
            }
            assert!(html.contains("<code>01J9ZK3M5T</code>"), "{html}");
            assert!(html.contains("mailto:admin@example.com?subject=Request%2001J9ZK3M5T"), "{html}");
            assert!(html.contains(&format!("Code {status}")), "{html}");
            assert!(!html.contains("{{") && !html.contains("http-equiv"), "{html}");
            let retry = matches!(status, 408 | 421 | 429 | 500 | 502 | 503 | 504);
            assert_eq!(html.contains("Try again</a>"), retry, "{status}");
        }
    }

    #[test]
    fn the_limit_is_named_where_there_is_one() {
        let page = Page { hint: Some("The limit is 16 MiB."), ..page(413) };

        assert!(html(&page).contains("The limit is 16 MiB."));
        let detail = json(&page)["error"]["detail"].as_str().unwrap().to_owned();
        assert_eq!(detail, "What was sent is larger than this site takes. The limit is 16 MiB.");
    }

    fn waiting(stage: Stage, poll: Option<&'static str>) -> Page<'static> {
        static MISSING: std::sync::LazyLock<Vec<Missing>> = std::sync::LazyLock::new(|| {
            let part = |name: &str, state, seconds| Missing {
                name: name.to_owned(),
                state,
                since: Duration::from_secs(seconds),
            };
            vec![part("app", "is not running yet", 130), part("<b>", "cannot be reached", 5)]
        });
        Page { waiting: Some(Waiting { stage, missing: &MISSING, poll }), ..page(503) }
    }

    #[test]
    fn a_page_for_those_who_wait_looks_again_by_itself() {
        let page = waiting(Stage::Starting, None);
        assert!(html(&page).contains("<meta http-equiv=\"refresh\" content=\"10\">"));
        assert!(!html(&page).contains("503") && !html(&page).contains("<script"));
        assert_eq!(page.response(Accept::Html).headers()[header::RETRY_AFTER], "10");

        let polling = waiting(Stage::Starting, Some("/da/health_check?ready=1&x=\""));
        let text = html(&polling);
        assert!(text.contains("<body data-ready=\"/da/health_check?ready=1&amp;x=&quot;\">"), "{text}");
        assert!(text.contains("<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>"), "{text}");
    }

    #[test]
    fn the_one_script_is_the_one_that_the_policy_allows() {
        let polling = waiting(Stage::Gone, Some("/ready"));
        let text = html(&polling);
        let script = text.split_once("<script>").unwrap().1.split_once("</script>").unwrap().0;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, script.as_bytes());
        let hash = data_encoding::BASE64.encode(digest.as_ref());
        let response = polling.response(Accept::Html);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains(&format!("script-src 'sha256-{hash}'; connect-src 'self'")), "{hash}: {policy}");
    }

    #[test]
    fn it_says_which_part_is_missing_and_since_when() {
        let page = waiting(Stage::Starting, None);
        let text = html(&page);
        assert!(text.contains("<li><code>app</code> is not running yet, for 2 minutes</li>"), "{text}");
        assert!(text.contains("<li><code>&lt;b&gt;</code> cannot be reached, for less than a minute</li>"), "{text}");
        let missing = &json(&page)["error"]["missing"];
        assert_eq!(missing[0], serde_json::json!({ "name": "app", "state": "is not running yet", "seconds": 130 }));
    }

    #[test]
    fn each_stage_has_words_of_its_own() {
        let titles = [Stage::Starting, Stage::Gone, Stage::Stopping, Stage::Stopped, Stage::Failed]
            .map(|stage| waiting(stage, None).words().title);
        let expected = [
            "Starting up",
            "The application has stopped answering",
            "Being shut down or restarted",
            "The application is stopped",
            "The application has failed",
        ];
        assert_eq!(titles, expected);
    }

    #[test]
    fn what_is_put_into_a_page_is_only_text_there() {
        let nasty = "\"'><script>alert(1)</script>&{{title}}";
        let page = Page { request_id: nasty, administrator: Some(nasty), hint: Some(nasty), ..page(500) };

        let html = html(&page);

        assert!(!html.contains("<script") && !html.contains("\"'>"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(1)&lt;/script&gt;&amp;{{title}}").count(), 3);
        let error = &json(&page)["error"];
        assert_eq!((error["request_id"].as_str(), error["administrator"].as_str()), (Some(nasty), Some(nasty)));
    }

    #[test]
    fn json_says_the_same_as_the_page() {
        let page = Page { administrator: None, ..page(404) };

        let expected = serde_json::json!({ "error": {
            "status": 404,
            "title": "Page not found",
            "detail": "There is nothing at this address.",
            "request_id": "01J9ZK3M5T",
        }});
        assert_eq!(json(&page), expected);
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        for text in ["<script", "src=", "url(", "@import", "http://", "https://", "<link", "<form"] {
            assert!(!html(&page(502)).contains(text), "{text}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_whole_and_kept_by_nobody() {
        for accept in [Accept::Html, Accept::Json] {
            let response = page(503).response(accept);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let headers = response.headers().clone();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(headers[header::CONTENT_LENGTH], body.len().to_string());
            assert_eq!(headers[header::CACHE_CONTROL], "no-store");
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert!(headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'"));
            let version = [env!("CARGO_PKG_VERSION"), "estibule"];
            assert!(!headers.contains_key(header::SERVER));
            assert!(version.iter().all(|word| !String::from_utf8_lossy(&body).contains(word)));
        }
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up() {
        for (delay, expected) in
            [(Duration::from_millis(1), "1"), (Duration::from_millis(2500), "3"), (Duration::ZERO, "1")]
        {
            let page = Page { retry_after: Some(delay), ..page(503) };
            assert_eq!(page.response(Accept::Json).headers()[header::RETRY_AFTER], expected);
        }
        assert!(!page(503).response(Accept::Json).headers().contains_key(header::RETRY_AFTER));
    }

    proptest! {
        #[test]
        fn escaped_text_has_nothing_a_parser_acts_on(text in "\\PC*") {
            let escaped = Escaped(&text).to_string();
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']));
            let back = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
            prop_assert_eq!(back.replace("&amp;", "&"), text);
        }
    }
}
