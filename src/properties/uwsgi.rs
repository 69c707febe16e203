//! A request as WSGI variables.

use std::collections::HashMap;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Version, header};

use super::{
    forwarded::{PROXY, STRANGER},
    message::{Forwardable, LIMITS},
};
use crate::{
    h1::{BodyLength, decode_request},
    http::forwarded::Scheme,
    proxy::uwsgi::{Environment, encode},
};

/// The packet of a request has each variable once, and none that speaks for us is the client's.
pub fn uwsgi(bytes: &[u8]) -> bool {
    let Ok(Some(head)) = decode_request(&mut bytes.into(), LIMITS) else { return false };
    let sent = [STRANGER, PROXY].map(|address| Forwardable::of(head.parts.clone(), address));
    sent.into_iter().flatten().filter(|sent| is_told_the_truth(sent, head.body)).count() == 2
}

fn is_told_the_truth(sent: &Forwardable, body: BodyLength) -> bool {
    let Forwardable { parts, target, path_info, authority, origin } = sent;
    let environment = Environment {
        method: &parts.method,
        version: parts.version,
        target,
        query: parts.uri.query().unwrap_or_default(),
        path_info,
        script_name: "",
        https: origin.scheme == Scheme::Https,
        client: origin.client,
        user: None,
        server_name: origin.host.host(),
        server_port: origin.port,
        content_length: matches!(body, BodyLength::Fixed(1..)).then_some(1),
        headers: &parts.headers,
    };
    let Some(variables) = packet(&environment) else { return false };
    let client = origin.client.map(|client| client.to_string());
    let port = origin.port.to_string();
    let ours = [
        ("REMOTE_ADDR", client.as_deref()),
        ("HTTP_X_FORWARDED_FOR", client.as_deref()),
        ("HTTP_X_REAL_IP", client.as_deref()),
        ("HTTP_X_FORWARDED_PROTO", Some(origin.scheme.as_str())),
        ("HTTP_X_FORWARDED_HOST", Some(origin.host.text()).filter(|host| !host.is_empty())),
        ("HTTP_X_FORWARDED_PORT", Some(port.as_str())),
        ("HTTP_HOST", Some(authority.text()).filter(|host| !host.is_empty() || parts.headers.contains_key("host"))),
        ("HTTP_PROXY", None),
        ("HTTP_EXPECT", None),
        ("HTTP_CONTENT_LENGTH", None),
        ("HTTP_CONTENT_TYPE", None),
        ("HTTP_FORWARDED", None),
        ("HTTP_TRANSFER_ENCODING", None),
        ("REMOTE_USER", None),
    ];
    for (name, expected) in ours {
        let said = variables.get(name.as_bytes()).map(|value| String::from_utf8_lossy(value));
        assert_eq!(said.as_deref(), expected, "{name}");
    }
    let known = |name: &[u8]| ours.iter().any(|(ours, _)| ours.as_bytes() == name);
    for name in variables.keys().filter(|name| !known(name)) {
        let alike = ["HTTP_X_FORWARD", "HTTP_X_REAL_", "HTTP_X_ORIGINAL_", "HTTP_X_ACCEL_", "HTTP_X_SENDFILE"];
        assert!(!alike.iter().any(|start| name.starts_with(start.as_bytes())), "{}", name.escape_ascii());
    }
    true
}

/// The packet of `environment`, which says just that; `None` where it does not fit in one.
pub(crate) fn packet(environment: &Environment<'_>) -> Option<HashMap<Vec<u8>, Vec<u8>>> {
    let mut packet = BytesMut::from(&b"before"[..]);
    if encode(&mut packet, environment).is_err() {
        assert_eq!(&packet[..], b"before", "what does not fit leaves nothing");
        return None;
    }
    assert!(packet.starts_with(b"before"));
    let variables = variables(&packet[6..]);
    assert_eq!(variables, expected(environment));
    Some(variables)
}

/// Reads a packet as uWSGI does; a name that comes twice is a fault.
pub(crate) fn variables(packet: &[u8]) -> HashMap<Vec<u8>, Vec<u8>> {
    assert_eq!((packet[0], packet[3]), (0, 0), "modifiers");
    let size = usize::from(u16::from_le_bytes([packet[1], packet[2]]));
    let mut rest = &packet[4..];
    assert_eq!(rest.len(), size, "size of the block");
    let mut piece = || {
        let (length, after) = rest.split_at_checked(2)?;
        let (piece, after) = after.split_at(usize::from(u16::from_le_bytes([length[0], length[1]])));
        rest = after;
        Some(piece.to_vec())
    };
    let mut variables = HashMap::new();
    while let Some(name) = piece() {
        let value = piece().expect("a value after each name");
        assert!(variables.insert(name.clone(), value).is_none(), "{} twice", name.escape_ascii());
    }
    variables
}

/// What WSGI wants to know (PEP 3333), and each field by the name that CGI gives it (RFC 3875, 4.1.18).
fn expected(environment: &Environment<'_>) -> HashMap<Vec<u8>, Vec<u8>> {
    let Environment { method, version, target, query, path_info, script_name, https, .. } = *environment;
    let mut variables: Vec<(String, Vec<u8>)> = Vec::new();
    let mut say = |name: &str, value: &[u8]| variables.push((name.to_owned(), value.to_vec()));
    say("REQUEST_METHOD", method.as_str().as_bytes());
    say("REQUEST_URI", target.as_bytes());
    say("QUERY_STRING", query.as_bytes());
    say("PATH_INFO", path_info);
    if !script_name.is_empty() {
        say("SCRIPT_NAME", script_name.as_bytes());
    }
    say("SERVER_PROTOCOL", if version == Version::HTTP_10 { b"HTTP/1.0" } else { b"HTTP/1.1" });
    say("REQUEST_SCHEME", if https { b"https" } else { b"http" });
    if https {
        say("UWSGI_SCHEME", b"https");
        say("HTTPS", b"on");
    }
    if let Some(client) = environment.client {
        say("REMOTE_ADDR", client.to_string().as_bytes());
    }
    if let Some(user) = environment.user {
        say("AUTH_TYPE", b"Basic");
        say("REMOTE_USER", user.as_bytes());
    }
    say("SERVER_NAME", environment.server_name.as_bytes());
    say("SERVER_PORT", environment.server_port.to_string().as_bytes());
    say("CONTENT_LENGTH", environment.content_length.map(|length| length.to_string()).unwrap_or_default().as_bytes());
    if let Some(value) = environment.headers.get(header::CONTENT_TYPE) {
        say("CONTENT_TYPE", value.as_bytes());
    }
    for (name, value) in joined(environment.headers) {
        say(&format!("HTTP_{}", name.to_uppercase().replace('-', "_")), &value);
    }
    let said = variables.len();
    let variables: HashMap<_, _> = variables.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
    assert_eq!(variables.len(), said, "two fields make one variable");
    variables
}

fn joined(headers: &HeaderMap) -> impl Iterator<Item = (&str, Vec<u8>)> {
    let names = headers.keys().filter(|name| **name != header::CONTENT_TYPE && **name != header::CONTENT_LENGTH);
    names.map(|name| {
        let separator: &[u8] = if *name == header::COOKIE { b"; " } else { b", " };
        let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        (name.as_str(), values.join(separator))
    })
}
