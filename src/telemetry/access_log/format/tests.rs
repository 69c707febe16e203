use std::{
    borrow::Cow,
    net::Ipv6Addr,
    sync::Arc,
    time::{Instant, UNIX_EPOCH},
};

use http::Method;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::telemetry::access_log::{Started, Tls};

/// A record with nothing in it, begun at 21:29:31.250 on 22 November 2026, UTC.
fn empty() -> Record {
    let wall = UNIX_EPOCH + Duration::from_millis(1_795_382_971_250);
    Record::new(Started { wall, clock: Instant::now() }, None)
}

fn full() -> Record {
    Record {
        client: Some("203.0.113.9".parse().unwrap()),
        user: Some(HeaderValue::from_static("alice")),
        method: Some(Method::GET),
        target: Some(Uri::from_static("/da/interview?i=a.yml")),
        version: Some(Version::HTTP_11),
        host: Some(HeaderValue::from_static("justice.example.com")),
        referer: Some(HeaderValue::from_static("https://justice.example.com/")),
        user_agent: Some(HeaderValue::from_static("Mozilla/5.0 (X11)")),
        route: Some(Arc::from("/da/")),
        upstream: Some(Arc::from("app")),
        endpoint: Some(Arc::from("unix:/run/app.sock")),
        status: 200,
        bytes_received: 12,
        bytes_sent: 3456,
        queue: Some(Duration::from_micros(1)),
        connect: Some(Duration::from_millis(2)),
        head: Some(Duration::from_millis(340)),
        total: Some(Duration::from_secs(61)),
        tls: Some(Tls { version: "TLSv1.3", cipher: "TLS13_AES_128_GCM_SHA256" }),
        note: Some(Cow::Borrowed("a \"note\"")),
        ..empty()
    }
}

fn line(format: &LogFormat, record: &Record) -> String {
    let mut line = Vec::new();
    Format::compile(format).unwrap().with_query(LoggedQuery::Whole).write(record, &mut line);
    String::from_utf8(line).unwrap()
}

fn template(template: &str, record: &Record) -> String {
    line(&LogFormat::Template(template.to_owned()), record)
}

fn refused(template: &str) -> String {
    Format::compile(&LogFormat::Template(template.to_owned())).unwrap_err().to_string()
}

/// The date in the time zone of the machine, which the tests of the clock cover.
fn date(record: &Record) -> String {
    template("{time_common}", record).trim_end().to_owned()
}

#[test]
fn combined_is_what_apache_writes() {
    let date = date(&full());
    let hostile = Record {
        client: Some(Ipv6Addr::LOCALHOST.into()),
        method: Some(Method::POST),
        target: Some("/a\"b".parse().unwrap()),
        version: Some(Version::HTTP_10),
        referer: Some(HeaderValue::from_bytes(b"\xff\\\t").unwrap()),
        user_agent: Some(HeaderValue::from_static("\" 200 1 \"")),
        status: 404,
        ..empty()
    };
    for (record, expected) in [
        (
            full(),
            format!(
                "203.0.113.9 - alice {date} \"GET /da/interview?i=a.yml HTTP/1.1\" 200 3456 \
                 \"https://justice.example.com/\" \"Mozilla/5.0 (X11)\"\n"
            ),
        ),
        (hostile, format!("::1 - - {date} \"POST /a\\\"b HTTP/1.0\" 404 - \"\\xff\\\\\\t\" \"\\\" 200 1 \\\"\"\n")),
        (Record { status: 408, ..empty() }, format!("- - - {date} \"-\" 408 - \"-\" \"-\"\n")),
    ] {
        assert_eq!(line(&LogFormat::Combined, &record), expected);
    }
}

#[test]
fn the_values_of_a_query_are_not_written_unless_that_is_asked_for() {
    for (target, expected) in [
        ("/a?token=s3cret&i=a%26b", "/a?token=*&i=*"),
        ("/a?s3cret", "/a?*"),
        ("/a?x=", "/a?x="),
        ("/a?", "/a?"),
        ("/a?x=1?y=2&&z=a=b", "/a?x=*&&z=*"),
        ("/a=b", "/a=b"),
    ] {
        let referer = HeaderValue::try_from(format!("https://site{target}")).unwrap();
        let record = Record {
            method: Some(Method::GET),
            target: Some(target.parse().unwrap()),
            version: Some(Version::HTTP_11),
            referer: Some(referer),
            user_agent: Some(HeaderValue::from_static("why?")),
            ..empty()
        };
        for format in [LogFormat::Combined, LogFormat::Json] {
            let mut line = Vec::new();
            Format::compile(&format).unwrap().write(&record, &mut line);
            let line = String::from_utf8(line).unwrap();
            assert!(line.contains(expected) && line.contains(&format!("https://site{expected}\"")), "{line}");
            assert!(line.contains("why?") && !line.contains("s3cret"), "{line}");
        }
    }
}

#[test]
fn the_target_is_written_as_its_version_wrote_it() {
    for (method, target, version, expected) in [
        (Method::GET, "/?q", Version::HTTP_11, "GET /?q HTTP/1.1\n"),
        (Method::OPTIONS, "*", Version::HTTP_11, "OPTIONS * HTTP/1.1\n"),
        (Method::GET, "http://other/x?q", Version::HTTP_11, "GET http://other/x?q HTTP/1.1\n"),
        (Method::CONNECT, "other:443", Version::HTTP_11, "CONNECT other:443 HTTP/1.1\n"),
        (Method::GET, "https://site/x?q", Version::HTTP_2, "GET /x?q HTTP/2.0\n"),
        (Method::CONNECT, "other:443", Version::HTTP_2, "CONNECT other:443 HTTP/2.0\n"),
    ] {
        let target = Some(target.parse().unwrap());
        let record = Record { method: Some(method), target, version: Some(version), ..empty() };

        assert_eq!(template("{request}", &record), expected);
        let (_, rest) = expected.split_once(' ').unwrap();
        assert_eq!(template("{target} {version}", &record), rest);
    }
}

#[test]
fn json_has_every_key_with_its_type() {
    let record = full();

    let object: Json = serde_json::from_str(&line(&LogFormat::Json, &record)).unwrap();

    assert_eq!(
        object,
        json!({
            "time": template("{time}", &record).trim_end(),
            "request_id": record.request_id.to_string(),
            "client": "203.0.113.9",
            "user": "alice",
            "method": "GET",
            "target": "/da/interview?i=a.yml",
            "version": "HTTP/1.1",
            "host": "justice.example.com",
            "referer": "https://justice.example.com/",
            "user_agent": "Mozilla/5.0 (X11)",
            "route": "/da/",
            "upstream": "app",
            "endpoint": "unix:/run/app.sock",
            "status": 200,
            "bytes_received": 12,
            "bytes_sent": 3456,
            "queue_seconds": 0.000_001,
            "connect_seconds": 0.002,
            "head_seconds": 0.34,
            "total_seconds": 61.0,
            "tls_version": "TLSv1.3",
            "tls_cipher": "TLS13_AES_128_GCM_SHA256",
            "note": "a \"note\"",
        })
    );
    let keys: Vec<_> = fields().iter().filter(|field| field.json).map(|field| field.name).collect();
    let mut written: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    written.sort_by_key(|key| keys.iter().position(|known| known == key));
    assert_eq!(written, keys);
}

#[test]
fn json_leaves_out_what_is_not_known() {
    let object: Json = serde_json::from_str(&line(&LogFormat::Json, &Record { status: 400, ..empty() })).unwrap();

    let keys: Vec<_> = object.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["bytes_received", "bytes_sent", "request_id", "status", "time"]);
}

#[test]
fn a_template_writes_fields_between_its_text() {
    for (text, expected) in [
        ("{client} {method} {status}", "203.0.113.9 GET 200\n"),
        ("{{{status}}} }}{{", "{200} }{\n"),
        ("{queue_seconds} {total_seconds}", "0.000001 61.000000\n"),
        ("{tls_version}/{tls_cipher}: {note}", "TLSv1.3/TLS13_AES_128_GCM_SHA256: a \\\"note\\\"\n"),
        ("ü{bytes_received}", "ü12\n"),
    ] {
        assert_eq!(template(text, &full()), expected, "{text}");
    }
    assert_eq!(template("{client} {method} {host} {note} {head_seconds}", &empty()), "- - - - -\n");
}

#[test]
fn an_ipv4_client_on_an_ipv6_socket_is_written_as_ipv4() {
    let record = Record { client: Some("::ffff:203.0.113.9".parse().unwrap()), ..empty() };

    assert_eq!(template("{client}", &record), "203.0.113.9\n");
}

#[test]
fn a_template_that_is_not_one_says_what_is_wrong() {
    for (template, problem) in [
        ("{clint}", "no log field is named `clint`; did you mean `client`?"),
        ("{user-agent}", "no log field is named `user-agent`; did you mean `user_agent`?"),
        ("{authorization}", "no log field is named `authorization`"),
        ("{cookie}", "no log field is named `cookie`"),
        ("{}", "no log field is named ``"),
        ("{client", "the `{` at byte 0 is not closed; a brace itself is written `{{`"),
        ("{client} }", "the `}` at byte 9 closes nothing; a brace itself is written `}}`"),
        ("{client}\n", "there is a control character at byte 8; a template is one line of text"),
        ("combine", "`combine` is neither `combined` nor `json`, and has no `{field}` in it"),
    ] {
        assert_eq!(refused(template), problem, "{template:?}");
    }
}

#[test]
fn every_field_can_be_named_once_and_is_documented() {
    for (index, field) in fields().iter().enumerate() {
        template(&format!("{{{}}}", field.name), &full());
        assert!(!field.doc.is_empty(), "{}", field.name);
        assert!(fields()[..index].iter().all(|other| other.name != field.name), "{} twice", field.name);
    }
}

#[test]
fn no_field_holds_a_credential() {
    for secret in ["authorization", "cookie", "set_cookie", "proxy_authorization", "token", "password"] {
        assert!(fields().iter().all(|field| !field.name.contains(secret)), "{secret}");
    }
}

#[test]
fn numbers_are_written_in_full() {
    for (number, width, expected) in
        [(0, 1, "0"), (0, 6, "000000"), (7, 3, "007"), (u64::MAX, 1, "18446744073709551615")]
    {
        let mut line = Vec::new();
        decimal(number, width, &mut line);
        assert_eq!(str::from_utf8(&line).unwrap(), expected);
    }
}

#[test]
fn a_second_line_needs_no_more_memory() {
    let record = full();
    for format in [LogFormat::Combined, LogFormat::Json] {
        let format = Format::compile(&format).unwrap();
        let mut line = Vec::new();
        format.write(&record, &mut line);
        let (once, capacity) = (line.clone(), line.capacity());

        line.clear();
        format.write(&record, &mut line);

        assert_eq!((line.clone(), line.capacity()), (once, capacity));
    }
}

proptest! {
    #[test]
    fn whatever_a_client_sends_is_one_line_and_json_parses_back(
        header: Vec<u8>,
        note: String,
        segment in "[!-~]{0,40}",
        status: u16,
        sent: u64,
        micros in 0..u64::MAX / 1000,
    ) {
        let record = Record {
            target: format!("/{segment}").parse().ok(),
            user_agent: HeaderValue::from_bytes(&header).ok(),
            referer: HeaderValue::from_bytes(&header).ok(),
            note: Some(Cow::Owned(note.clone())),
            status,
            bytes_sent: sent,
            total: Some(Duration::from_micros(micros)),
            ..empty()
        };

        let object = line(&LogFormat::Json, &record);
        let combined = line(&LogFormat::Combined, &record);

        prop_assert_eq!(object.trim_end_matches('\n').chars().filter(|character| character.is_control()).count(), 0);
        prop_assert_eq!(combined.find('\n'), Some(combined.len() - 1));
        prop_assert_eq!(combined.replace(r"\\", "").replace(r#"\""#, "").matches('"').count(), 6);
        let object: Json = serde_json::from_str(&object).unwrap();
        prop_assert_eq!(object["note"].as_str(), Some(note.as_str()));
        prop_assert_eq!(object["bytes_sent"].as_u64(), Some(sent));
        prop_assert_eq!(object["status"].as_u64(), Some(status.into()));
        if let (Some(value), Ok(text)) = (&record.user_agent, str::from_utf8(&header)) {
            prop_assert_eq!(value.as_bytes(), text.as_bytes());
            prop_assert_eq!(object["user_agent"].as_str(), Some(text));
        }
    }
}
