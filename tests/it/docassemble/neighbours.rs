//! What stands in front of us, as seen; and who else may read the answers.

use std::io::Write;

use super::{
    super::support::{
        Backend, body,
        clients::connect_from,
        header,
        network::{BALANCER, in_network},
        raw, read_response, status, wait_for,
    },
    Site,
};

fn ask(from: &str, fields: &str) -> String {
    let mut stream = connect_from(from, ([127, 0, 0, 1], 80).into());
    write!(stream, "GET /x HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n").unwrap();
    read_response(&mut stream)
}

fn to(backend: &Backend) -> String {
    format!(
        "upstreams: {{ app: {{ protocol: http, endpoints: ['{}'], health: {{ ready: null }} }}, \
         websockets: {{ endpoints: ['127.0.0.1:5000'], hold: 0 }} }}\n",
        backend.address
    )
}

#[test]
fn the_chain_of_proxies_is_shown_as_seen_and_a_mismatch_is_a_warning() {
    in_network(|| {
        let backend = Backend::echoing();
        let site = Site::start("behind https load balancer: True\nexternal hostname: a.example\n", &to(&backend));
        let told = body(&ask(BALANCER, "X-Forwarded-For: 6.6.6.6, 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"));
        assert!(told.to_ascii_lowercase().contains("x-forwarded-proto: https"), "{told}");
        let trusted = &site.served.status()["hops"]["trusted"];
        assert_eq!((trusted["peer"].as_str(), trusted["client"].as_str()), (Some(BALANCER), Some("203.0.113.7")));
        assert_eq!(trusted["scheme"].as_str(), Some("https"));
        assert_eq!(trusted["said"].as_str(), Some("x-forwarded-for: 6.6.6.6, 203.0.113.7; x-forwarded-proto: https"));
        assert!(site.served.status()["hops"]["mismatch"].is_null());

        // A proxy on this machine, which nobody said is to be believed.
        wait_for("the mismatch to be seen", || {
            ask("127.0.0.1", "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n");
            site.served.status()["hops"]["mismatch"].is_string()
        });
        let events = site.served.events();
        assert!(
            events.contains("browsers see https and the application is told http: 127.0.0.1 is not in"),
            "{events}"
        );
        let config = site.served.path("da/config.yml");
        let explained = site.served.order(&["explain", "--docassemble", config.to_str().unwrap()]);
        assert!(explained.contains("\nproxies, as seen\n  WARNING: browsers see https"), "{explained}");
        let shown = site.served.order(&["status"]);
        for text in
            ["proxies, as seen\n  WARNING: browsers see https", "127.0.0.1 (NOT trusted) at", "10.0.0.1 (trusted) at"]
        {
            assert!(shown.contains(text), "{text} is missing:\n{shown}");
        }
    });
}

#[test]
fn the_old_cross_site_domain_has_its_four_headers_where_the_application_says_nothing() {
    in_network(|| {
        let silent = Backend::replying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        let site = Site::start("cross site domain: https://www.example.com\nroot: /da/\n", &to(&silent));
        let get = |method: &str, path: &str| {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            raw(([127, 0, 0, 1], 80).into(), request)
        };
        let four = |answer: &str| {
            ["origin", "methods", "headers", "credentials"]
                .map(|name| header(answer, &format!("access-control-allow-{name}")))
        };
        let expected = ["https://www.example.com", "GET, POST, OPTIONS, PUT, DELETE", "Content-Type, origin", "true"]
            .map(|value| Some(value.to_owned()));
        assert_eq!(four(&get("GET", "/da/")), expected);
        assert_eq!(four(&get("OPTIONS", "/da/")), expected);
        let missing = get("GET", "/da/ws/socket.io/");
        assert_eq!((status(&missing), four(&missing)), (503, expected), "also on pages of our own");
        assert_eq!(four(&get("GET", "/elsewhere")), [None, None, None, None]);

        let speaking = Backend::replying(
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://other.example\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        );
        site.served.apply(&to(&speaking));
        let own = [Some("https://other.example".to_owned()), None, None, None];
        assert_eq!(four(&get("OPTIONS", "/da/")), own, "what the application says stands alone");
        site.reload("cross site domains: [https://www.example.com]\nroot: /da/\n");
        site.served.apply(&to(&silent));
        assert_eq!(
            four(&get("GET", "/da/")),
            [None, None, None, None],
            "the new spelling is the application's business"
        );
    });
}
