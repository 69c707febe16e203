//! Of F05 to F108, what needs another configuration than the sites that rows share.

use std::{fs, io::Write, thread};

use super::super::{
    super::support::{
        Backend,
        applications::seen,
        body, connect, header,
        network::{BALANCER, CLIENT, in_network},
        raw, read_head, status,
    },
    installed::{HOST, Installed},
};

const EIGHTY: ([u8; 4], u16) = ([127, 0, 0, 1], 80);

/// A site with the application, under an overlay.
fn under(config: &'static str, overlay: &'static str, row: impl FnOnce(Installed) + Send + 'static) {
    in_network(move || {
        let prepare = |root: &std::path::Path| fs::write(root.join("overlay.yml"), overlay).unwrap();
        if let Some(site) = Installed::start_with(config, &[], prepare) {
            row(site);
        }
    });
}

fn remote(answer: &str) -> String {
    seen(answer)["REMOTE_ADDR"].as_str().unwrap().to_owned()
}

#[test]
fn f05_a_public_port_of_https_is_named_and_the_clients_is_not() {
    in_network(|| {
        let config =
            "use https: True\nexternal hostname: justice.example.com\nurl root: https://justice.example.com:8443\n";
        let site = Installed::bare(config, &[], |_| {});
        let answer = site.get(80, "/x", "justice.example.com:8080");
        assert_eq!(header(&answer, "location").as_deref(), Some("https://justice.example.com:8443/x"));
    });
}

#[test]
fn f15_the_bare_prefix_is_redirected_to_its_slash_where_that_is_wanted() {
    under("root: /da/\n", "routes: [{ prefix: /da/, slash: redirect }]\n", |site| {
        let answer = site.get(80, "/da?i=%20", HOST);
        assert_eq!((status(&answer), header(&answer, "location").as_deref()), (308, Some("/da/?i=%20")));
        assert_eq!(seen(&site.get(80, "/da/", HOST))["PATH_INFO"], "/");
    });
}

#[test]
fn f21_the_rest_of_the_site_may_be_another_servers() {
    let overlay =
        "upstreams: { apache: { endpoints: ['127.0.0.1:8080'] } }\nroutes: [{ prefix: /, upstream: apache }]\n";
    under("root: /da/\n", overlay, |site| {
        let _apache = Backend::echoing_at("127.0.0.1:8080");
        for path in ["/", "/dashboard", "/DA/x"] {
            assert!(body(&site.get(80, path, HOST)).starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{path}");
        }
        assert_eq!(seen(&site.get(80, "/da/x", HOST))["SCRIPT_NAME"], "/da");
        assert!(body(&site.get(80, "/da/ws/x", HOST)).starts_with("GET /x HTTP/1.1\r\n"));
    });
}

#[test]
fn f42_nobody_is_believed_without_a_balancer_and_the_three_networks_with_one() {
    const CHAIN: &str = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9, ";
    under("root: /\n", "", |site| {
        let ask = |last: &str| remote(&site.ask_from(BALANCER, 80, &format!("{CHAIN}{last}\r\n")));
        assert_eq!(ask("10.0.0.2"), BALANCER);
        site.configure("root: /\nbehind https load balancer: True\n");
        for (last, client) in [
            ("10.255.0.1", "203.0.113.9"),
            ("172.16.0.1", "203.0.113.9"),
            ("172.31.255.1", "203.0.113.9"),
            ("192.168.9.9", "203.0.113.9"),
            ("172.32.0.1", "172.32.0.1"),
            ("192.169.0.1", "192.169.0.1"),
            ("100.64.0.1", "100.64.0.1"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(ask(last), client, "past {last}");
        }
    });
}

#[test]
fn f42_the_list_of_those_who_are_believed_can_be_another() {
    let overlay = "trusted_proxies: [private, 203.0.113.7]\n";
    under("root: /\nbehind https load balancer: True\n", overlay, |site| {
        let request = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.9\r\n";
        for peer in [CLIENT, BALANCER] {
            assert_eq!(remote(&site.ask_from(peer, 80, request)), "198.51.100.9", "{peer}");
        }
    });
}

/// A request for each page of ours, with these fields.
fn refused(site: &Installed, fields: &str) -> Vec<(u16, String)> {
    let ask = |head: &str| raw(EIGHTY.into(), format!("{head}{fields}Connection: close\r\n\r\n"));
    vec![
        (400, ask("GET /da/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n")),
        (404, ask("GET /elsewhere HTTP/1.1\r\nHost: a\r\n")),
        (413, ask("POST /da/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n")),
        (431, ask(&format!("GET /da/x HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n", "x".repeat(40_000)))),
        (502, ask("GET /da/ws/broken HTTP/1.1\r\nHost: a\r\n")),
        (503, ask("GET /gone HTTP/1.1\r\nHost: a\r\n")),
        (504, ask("GET /da/slow?2 HTTP/1.1\r\nHost: a\r\n")),
        (301, site.get(8081, "/x", HOST)),
    ]
}

/// One that answers each request with its own error, and has a limit, a deadline and an upstream that is not there.
fn with_every_error(row: impl FnOnce(Installed) + Send + 'static) {
    in_network(|| {
        let config = "root: /da/\nmaximum content length: 1000\nweb server timeout: 1\nbehind https load balancer: True\n\
                      external hostname: justice.example.com\nwebsockets port: 5001\n";
        let overlay = "upstreams: { gone: { endpoints: ['127.0.0.1:9'], hold: 0 } }\n\
                       routes: [{ prefix: /gone, upstream: gone }]\n";
        let prepare = |root: &std::path::Path| fs::write(root.join("overlay.yml"), overlay).unwrap();
        let Some(site) = Installed::start_with(config, &[], prepare) else { return };
        let _broken = Backend::start_at("127.0.0.1:5001", |mut stream| {
            read_head(&mut stream);
            stream.write_all(b"no HTTP at all\r\n\r\n").ok();
        });
        row(site);
    });
}

#[test]
fn f107_no_answer_of_any_kind_has_a_server_or_a_version() {
    with_every_error(|site| {
        let served = site.get(80, "/da/x", HOST);
        for (expected, answer) in refused(&site, "").into_iter().chain([(200, served)]) {
            assert_eq!(status(&answer), expected, "{answer}");
            assert_eq!(header(&answer, "server"), None, "{answer}");
            let own = answer.to_ascii_lowercase();
            assert!(!own.contains("vestibule") && !own.contains(env!("CARGO_PKG_VERSION")), "{answer}");
        }
    });
}

#[test]
fn f108_every_error_is_a_page_for_people_and_json_for_programs() {
    with_every_error(|site| {
        let held = |fields: &str, form: &str| {
            for (expected, answer) in refused(&site, fields) {
                assert_eq!(status(&answer), expected, "{fields}: {answer}");
                if expected == 301 {
                    continue;
                }
                let kind = header(&answer, "content-type").unwrap_or_default();
                assert!(kind.starts_with(form), "{expected} {fields}: {kind}");
                let json = serde_json::from_str::<serde_json::Value>(&body(&answer));
                assert_eq!(json.is_ok(), form == "application/json", "{expected} {fields}: {answer}");
            }
        };
        // Each of them waits for a deadline.
        thread::scope(|scope| {
            scope.spawn(|| held("Accept: text/html\r\n", "text/html"));
            scope.spawn(|| held("", "text/html"));
            scope.spawn(|| held("Accept: application/json\r\n", "application/json"));
        });
        // Without a word about it, below `api/` it is a program.
        let api = site.get(80, "/da/api/slow?2", HOST);
        assert_eq!((status(&api), header(&api, "content-type").as_deref()), (504, Some("application/json")));
        let mut open = connect(EIGHTY.into());
        open.write_all(b"GET /da/x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(status(&read_head(&mut open)), 200, "and it goes on");
    });
}
