//! What a reload would change, in words, and how much it takes.
//!
//! Plans are compared as the trees they are written as, so that a key which is new to [`Plan`] cannot be forgotten here.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde_json::{Map, Value as Json};

use super::{
    plan::Plan,
    units::{show_size, show_time},
};

/// Every difference between two plans: a sentence each, that begins with the key path.
pub fn difference(old: &Plan, new: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", &tree(old), &tree(new), &mut lines);
    lines
}

/// How a change of plan comes to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Where the traffic is.
    Effect,
    /// A new worker beside the old one, which ends what it began; why, by key.
    NewWorker(Vec<String>),
    /// Everything anew; why, by key.
    Restart(Vec<String>),
}

/// What it takes to go from `old` to `new` where the traffic has a process of its own, or, `single`, has not.
pub fn takes(old: &Plan, new: &Plan, single: bool) -> Takes {
    let mut why = Vec::new();
    if old.workers != new.workers {
        why.push(format!("workers: {} become {}", old.workers, new.workers));
    }
    if old.user != new.user && !single {
        why.push(format!("user: `{}` becomes `{}`", old.user, new.user));
    }
    match (why.is_empty(), single) {
        (true, _) => Takes::Effect,
        (false, false) => Takes::NewWorker(why),
        (false, true) => Takes::Restart(why),
    }
}

/// `plan` as JSON, with its passwords empty.
pub fn without_passwords(plan: &Plan) -> Json {
    let mut json = serde_json::to_value(plan).expect("a plan has text keys only");
    if let Json::Object(keys) = &mut json {
        hide_passwords(keys);
    }
    json
}

fn tree(plan: &Plan) -> Json {
    let mut tree = serde_json::to_value(plan).expect("a plan has text keys only");
    if let Json::Object(keys) = &mut tree {
        // Where it comes from is none by itself, nor is what was told of it.
        for key in ["sources", "docassemble", "warnings"] {
            keys.remove(key);
        }
        hide_passwords(keys);
        // The key path of a certificate is where it stands, which is no difference by itself.
        for list in ["certificates", "acme", "fetched"] {
            let certificates = keys.get_mut("tls").and_then(|tls| tls.get_mut(list)).and_then(Json::as_array_mut);
            for certificate in certificates.into_iter().flatten().filter_map(Json::as_object_mut) {
                certificate.remove("at");
                certificate.remove("after");
            }
        }
    }
    tree
}

/// A password is neither shown nor, as `/config` does not tell it, compared.
fn hide_passwords(keys: &mut Map<String, Json>) {
    for (name, value) in keys.iter_mut() {
        match value {
            Json::String(text) if matches!(name.as_str(), "password" | "secret") => text.clear(),
            // Any of them may be one; their names are not.
            Json::Object(variables) if name == "environment" => {
                variables.values_mut().for_each(|value| *value = Json::String(String::new()));
            }
            Json::Object(keys) => hide_passwords(keys),
            Json::Array(items) => items.iter_mut().filter_map(Json::as_object_mut).for_each(hide_passwords),
            _ => {}
        }
    }
}

fn compare(at: &str, old: &Json, new: &Json, lines: &mut Vec<String>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Json::Object(old), Json::Object(new)) if named(old).is_none() && named(new).is_none() => {
            let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for name in names {
                let at = path(at, name);
                match (old.get(name), new.get(name)) {
                    (Some(old), Some(new)) => compare(&at, old, new, lines),
                    (Some(_), None) => lines.push(format!("{at} is removed")),
                    (None, new) => lines.push(format!("{at} is added: {}", show(&at, new.unwrap_or(&Json::Null)))),
                }
            }
        }
        (Json::Array(old), Json::Array(new)) if old.iter().chain(new).any(|item| label(item).is_some()) => {
            compare_lists(at, old, new, lines);
        }
        _ => lines.push(format!("{at}: {} becomes {}", show(at, old), show(at, new))),
    }
}

/// Entries that have a name of their own (an address, a prefix) are the same wherever they stand.
fn compare_lists(at: &str, old: &[Json], new: &[Json], lines: &mut Vec<String>) {
    let mut rest: Vec<Option<&Json>> = new.iter().map(Some).collect();
    let mut places: HashMap<Option<String>, VecDeque<usize>> = HashMap::new();
    for (place, after) in new.iter().enumerate() {
        places.entry(label(after)).or_default().push_back(place);
    }
    for before in old {
        let name = label(before);
        let entry = format!("{at}[{}]", name.as_deref().unwrap_or_default());
        let place = places.get_mut(&name).and_then(VecDeque::pop_front);
        match place.and_then(|place| rest[place].take()) {
            Some(after) => compare(&entry, before, after, lines),
            None => lines.push(format!("{entry} is removed")),
        }
    }
    for added in rest.into_iter().flatten() {
        let entry = format!("{at}[{}]", label(added).unwrap_or_default());
        lines.push(format!("{entry} is added: {}", show(&entry, added)));
    }
}

/// What an entry of `listeners`, `routes` or `certificates` is known by.
fn label(item: &Json) -> Option<String> {
    let keys = item.as_object()?;
    if let Some(address) = keys.get("address") {
        return Some(show("", address));
    }
    if let Some(prefix) = keys.get("prefix") {
        let host = keys.get("host").and_then(Json::as_str).unwrap_or_default();
        return Some(format!("{host}{}/", prefix.as_str().unwrap_or_default()));
    }
    if let Some(hosts) = keys.get("hosts").and_then(Json::as_array) {
        return Some(hosts.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", "));
    }
    if let Some(store) = keys.get("store") {
        return Some(["bucket", "prefix"].map(|key| store[key].as_str().unwrap_or_default()).join("/"));
    }
    keys.get("certificate").map(|file| show("", file))
}

/// A key path as it is written in a configuration.
fn path(at: &str, name: &str) -> String {
    let name = match name {
        "acme" | "fetched" => "certificates",
        "buffer_request" => "buffer.request",
        "buffer_response" => "buffer.response",
        "health_path" => "health.path",
        "ready_path" => "health.ready",
        "sink" => "path",
        "tls12" => "protocols (TLSv1.2)",
        "tls13" => "protocols (TLSv1.3)",
        name => name,
    };
    // What one key of `admin` takes is written beside it.
    let (at, name) = match (at, name) {
        ("admin.listen", "address") => ("admin", "listen"),
        ("admin.listen", name) => ("admin", name),
        other => other,
    };
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// A time, an address, or what else is one value in a configuration and a mapping here.
fn named(keys: &Map<String, Json>) -> Option<String> {
    let number = |name: &str| keys.get(name).and_then(Json::as_u64);
    if let (2, Some(seconds), Some(nanos)) = (keys.len(), number("secs"), number("nanos")) {
        return Some(show_time(std::time::Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))));
    }
    let (1, Some((kind, value))) = (keys.len(), keys.iter().next()) else { return None };
    let text = value.as_str();
    match (kind.as_str(), text) {
        ("Tcp", Some(address)) => Some(address.to_owned()),
        ("Tcp", None) => {
            let host = value.get("host")?.as_str()?;
            Some(format!("{host}:{}", value.get("port")?))
        }
        ("Unix", Some(socket)) => Some(format!("unix:{socket}")),
        ("At", None) => named(value.as_object()?),
        ("Srv", Some(name)) => Some(format!("srv:{name}")),
        ("Inherited", Some(name)) => Some(format!("fd:{name}")),
        ("File" | "Template", Some(text)) => Some(text.to_owned()),
        _ => None,
    }
}

fn show(at: &str, value: &Json) -> String {
    match value {
        Json::Null => "none".to_owned(),
        Json::Bool(yes) => yes.to_string(),
        Json::Number(number) if IN_BYTES.iter().any(|key| at.ends_with(key)) => {
            number.as_u64().map_or_else(|| number.to_string(), show_size)
        }
        Json::Number(number) => number.to_string(),
        Json::String(text) => format!("`{text}`"),
        Json::Array(items) if items.is_empty() => "none".to_owned(),
        Json::Array(items) => items.iter().map(|item| show(at, item)).collect::<Vec<_>>().join(", "),
        Json::Object(keys) => named(keys).unwrap_or_else(|| {
            let parts = keys.iter().filter(|(_, value)| !matches!(value, Json::Null | Json::Bool(false)));
            let part = |(name, value): (&String, &Json)| format!("{} {}", path("", name), show(name, value));
            parts.map(part).collect::<Vec<_>>().join(", ")
        }),
    }
}

/// Keys whose numbers are bytes.
const IN_BYTES: &[&str] = &[
    "body_limit",
    "header_bytes",
    "uri_bytes",
    "spool.limit",
    "spool.memory",
    "rotate.size",
    "limit_bytes",
    "minimum_rate",
    "limits.memory",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        let base = "listeners: [{ address: '127.0.0.1:80' }]\n\
                    upstreams: { app: { endpoints: ['a:1'] } }\n\
                    routes: [{ prefix: /, upstream: app }]\n";
        let keys: Vec<_> = text.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect();
        let kept = base.lines().filter(|line| !keys.iter().any(|key| line.starts_with(&format!("{key}:"))));
        let text = format!("{}\n{text}", kept.collect::<Vec<_>>().join("\n"));
        super::super::parse("/etc/v.yml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_plan_does_not_differ_from_itself() {
        assert_eq!(difference(&plan(""), &plan("")), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_said_by_its_key_in_units() {
        for (old, new, expected) in [
            ("", "host: example.org", "host: none becomes `example.org`"),
            ("", "drain: 5s", "drain: 18s becomes 5s"),
            ("", "user: nobody", "user: `www-data` becomes `nobody`"),
            ("", "trusted_proxies: [loopback]", "trusted_proxies.networks: none becomes `127.0.0.0/8`, `::1/128`"),
            ("", "spool: { limit: 2GiB }", "spool.limit: 1GiB becomes 2GiB"),
            ("", "limits: { head_timeout: 5s }", "limits.head_timeout: 15s becomes 5s"),
            (
                "",
                "upstreams: { app: { endpoints: ['a:1'], concurrency: 6 } }",
                "upstreams.app.concurrency: none becomes 6",
            ),
            ("", "upstreams: { app: { endpoints: ['b:1'] } }", "upstreams.app.endpoints[a:1] is removed"),
            (
                "",
                "upstreams: { app: { endpoints: [{ address: 'a:1', weight: 3 }] } }",
                "upstreams.app.endpoints[a:1].weight: 1 becomes 3",
            ),
            (
                "",
                "routes: [{ prefix: /, upstream: app, body_limit: 1MiB }]",
                "routes[/].body_limit: 16MiB becomes 1MiB",
            ),
            (
                "",
                "routes: [{ prefix: /, upstream: app, buffer: { request: false } }]",
                "routes[/].buffer.request: true becomes false",
            ),
            (
                "",
                "listeners: [{ address: '127.0.0.1:80', tls: true }]",
                "listeners[127.0.0.1:80].tls: false becomes true",
            ),
            ("admin: unix:/a", "admin: { socket: 'unix:/b' }", "admin.socket: `/a` becomes `/b`"),
            (
                "admin: { listen: '[::1]:1', certificate: a, key: a, token_file: a }",
                "admin: { listen: '[::1]:2', certificate: a, key: a, token_file: a }",
                "admin.listen: `[::1]:1` becomes `[::1]:2`",
            ),
            (
                "admin: { listen: '[::1]:1', certificate: a, key: a, token_file: a }",
                "admin: { listen: '[::1]:1', certificate: a, key: a, token_file: /b }",
                "admin.token_file: `/etc/a` becomes `/b`",
            ),
            ("", "access_log: { path: /var/log/a.log }", "access_log.path: `Stdout` becomes /var/log/a.log"),
        ] {
            let lines = difference(&plan(old), &plan(new));
            assert!(lines.iter().any(|line| line == expected), "{expected}\n{lines:#?}");
        }
    }

    #[test]
    fn what_is_added_and_removed_is_named() {
        let lines = difference(&plan(""), &plan("listeners: [{ address: '127.0.0.1:81' }, { address: 'unix:/a' }]"));

        assert_eq!(lines[0], "listeners[127.0.0.1:80] is removed");
        assert!(lines[1].starts_with("listeners[127.0.0.1:81] is added"), "{lines:?}");
        assert!(lines[2].starts_with("listeners[unix:/a] is added"), "{lines:?}");
    }

    #[test]
    fn the_order_of_listeners_is_no_difference() {
        let (one, two) = ("{ address: '127.0.0.1:80' }", "{ address: '127.0.0.1:81' }");

        let lines =
            difference(&plan(&format!("listeners: [{one}, {two}]")), &plan(&format!("listeners: [{two}, {one}]")));

        assert_eq!(lines, Vec::<String>::new());
    }

    #[test]
    fn only_threads_and_the_user_take_another_worker_or_a_restart() {
        let (old, threads, user) = (plan("workers: 1"), plan("workers: 2"), plan("workers: 1\nuser: nobody"));

        assert_eq!(takes(&old, &plan("workers: 1\nhost: example.org"), false), Takes::Effect);
        assert!(matches!(takes(&old, &threads, false), Takes::NewWorker(why) if why[0].starts_with("workers: ")));
        assert!(matches!(takes(&old, &threads, true), Takes::Restart(_)));
        assert!(matches!(takes(&old, &user, false), Takes::NewWorker(_)));
        assert_eq!(takes(&old, &user, true), Takes::Effect);
    }
}
