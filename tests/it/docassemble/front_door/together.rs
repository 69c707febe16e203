//! Rows that share a site.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
};

use serde_json::Value;

use super::{
    super::{
        super::support::{
            applications::seen,
            body,
            clients::{block_on, client, tls_connect},
            connect, header,
            network::{BALANCER, CLIENT, OTHER_CLIENT},
            read_response, status, wait_for,
        },
        installed::{HOST, upgrade},
    },
    Row, held,
};

/// All rows.
pub(super) const NUMBERS: [&[Row]; 4] = [FRONT_ROWS, BEHIND_ROWS, PLAIN_ROWS, APACHE_ROWS];

fn location(answer: &str) -> Option<String> {
    header(answer, "location")
}

fn text<'a>(environ: &'a serde_json::Map<String, Value>, name: &str) -> Option<&'a str> {
    environ.get(name).and_then(Value::as_str)
}

#[test]
fn the_front_door_on_80_and_443() {
    held(FRONT, &[], FRONT_ROWS);
}

const FRONT: &str = "\
use https: True
external hostname: justice.example.com
url root: https://justice.example.com
root: /da/
use nginx to serve files: True
server administrator email: admin@example.com
";

const FRONT_ROWS: &[Row] = &[
    (1, "plain http is redirected to https", |site| {
        let answer = site.get(80, "/da/x?y=1", HOST);
        assert_eq!(
            (status(&answer), location(&answer).as_deref()),
            (301, Some("https://justice.example.com/da/x?y=1"))
        );
        assert_eq!(location(&site.get(80, "/x?y=1", HOST)).as_deref(), Some("https://justice.example.com/x?y=1"));
    }),
    (2, "escapes survive the redirect byte for byte", |site| {
        let answer = site.get(80, "/a%2Fb?c=%20d", HOST);
        assert_eq!(location(&answer).as_deref(), Some("https://justice.example.com/a%2Fb?c=%20d"));
    }),
    (3, "a POST is redirected as well", |site| {
        let answer = site.ask(80, "POST /da/x HTTP/1.1\r\nHost: justice.example.com\r\nContent-Length: 0\r\n");
        assert_eq!((status(&answer), location(&answer).as_deref()), (301, Some("https://justice.example.com/da/x")));
    }),
    (4, "the client's Host does not choose the target", |site| {
        assert_eq!(location(&site.get(80, "/x", "evil.com")).as_deref(), Some("https://justice.example.com/x"));
    }),
    (5, "the port of Host is not copied; a public one is configured", |site| {
        let answer = site.get(80, "/x", "justice.example.com:8080");
        assert_eq!(location(&answer).as_deref(), Some("https://justice.example.com/x"));
    }),
    (7, "another host on 443 is redirected to the site's", |site| {
        let answer = site.get_tls("/da/x?y=%2F", "other.example");
        assert_eq!(
            (status(&answer), location(&answer).as_deref()),
            (301, Some("https://justice.example.com/da/x?y=%2F"))
        );
    }),
    (8, "also plain requests of /ws/, but no handshake and no health check", |site| {
        let answer = site.get_tls("/da/ws/socket.io/?transport=polling", "other.example");
        assert_eq!(status(&answer), 301);
        let health = site.get_tls("/da/health_check", "10.0.0.5");
        assert_eq!(status(&health), 200, "{health}");
        let switched = site.head_tls(
            "GET /da/ws/socket.io/ HTTP/1.1\r\nHost: other.example\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: Upgrade\r\n\r\n",
        );
        assert_eq!(status(&switched), 101, "{switched}");
    }),
    (9, "letter case, a final dot and the port of Host make no other host", |site| {
        for host in
            ["JUSTICE.example.com", "justice.example.com.", "justice.example.com:443", "Justice.Example.Com.:443"]
        {
            assert_eq!(status(&site.get_tls("/da/x", host)), 200, "{host}");
        }
    }),
    (12, "8081 is not open", |_| {
        assert!(TcpStream::connect("127.0.0.1:8081").is_err());
    }),
    (40, "the application is told https on 443", |site| {
        assert_eq!(text(&seen(&site.get_tls("/da/x", HOST)), "HTTP_X_FORWARDED_PROTO"), Some("https"));
    }),
    (46, "X-Forwarded-Host and -Port are the public ones", |site| {
        let environ = seen(&site.get_tls("/da/x", HOST));
        assert_eq!(text(&environ, "HTTP_X_FORWARDED_HOST"), Some(HOST));
        assert_eq!(text(&environ, "HTTP_X_FORWARDED_PORT"), Some("443"));
    }),
    (47, "Host is forwarded as it came", |site| {
        let environ = seen(&site.get_tls("/da/x", "justice.example.com:443"));
        assert_eq!(text(&environ, "HTTP_HOST"), Some("justice.example.com:443"));
    }),
    (48, "Referer is kept, and no Referrer-Policy added", |site| {
        let answer = site.ask_tls(
            "GET /da/x HTTP/1.1\r\nHost: justice.example.com\r\nReferer: https://justice.example.com/da/y\r\n",
        );
        assert_eq!(text(&seen(&answer), "HTTP_REFERER"), Some("https://justice.example.com/da/y"));
        assert_eq!(header(&answer, "referrer-policy"), None);
    }),
    (49, "the uwsgi variables say https on TLS", |site| {
        let environ = seen(&site.get_tls("/da/x", HOST));
        assert_eq!(text(&environ, "HTTPS"), Some("on"));
        assert_eq!(text(&environ, "REQUEST_SCHEME"), Some("https"));
        assert_eq!(text(&environ, "wsgi.url_scheme"), Some("https"));
    }),
    (66, "own certificates are served with their chain", |site| {
        let length = block_on(async {
            let config = client(&[&site.authority], &[]);
            let stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap().len()
        });
        assert_eq!(length, 2);
    }),
    (67, "keys that only root may read are read, at the start and at a reload", |site| {
        let key = fs::metadata(site.path("etc/ssl/docassemble/nginx.key")).unwrap();
        assert_eq!((key.uid(), key.mode() & 0o777), (0, 0o400));
        assert!(site.served.order(&["reload"]).contains("nothing has changed"));
    }),
    (71, "TLS 1.2 and 1.3 are spoken by default", |site| {
        for (version, protocol) in [
            (&rustls::version::TLS12, rustls::ProtocolVersion::TLSv1_2),
            (&rustls::version::TLS13, rustls::ProtocolVersion::TLSv1_3),
        ] {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(site.authority.clone()).unwrap();
            let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let spoken = block_on(async {
                let stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
                stream.get_ref().1.protocol_version()
            });
            assert_eq!(spoken, Some(protocol));
        }
    }),
    (73, "h2 and http/1.1 are offered by ALPN", |site| {
        for protocol in ["h2", "http/1.1"] {
            let chosen = block_on(async {
                let config = client(&[&site.authority], &[protocol]);
                let stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
                stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
            });
            assert_eq!(chosen.as_deref(), Some(protocol.as_bytes()));
        }
    }),
    (82, "HSTS is the application's to say", |site| {
        let silent = site.get_tls("/da/x", HOST);
        assert_eq!(header(&silent, "strict-transport-security"), None);
        let said = site.get_tls("/da/file?Strict-Transport-Security=max-age%3D31536000&Content-Length=0", HOST);
        assert_eq!(header(&said, "strict-transport-security").as_deref(), Some("max-age=31536000"));
    }),
    (107, "no answer names us or our version", |site| {
        for answer in [site.get(80, "/x", HOST), site.get_tls("/da/x", HOST), site.get_tls("/elsewhere", HOST)] {
            assert_eq!(header(&answer, "server"), None);
            assert!(!answer.to_lowercase().contains("vestibule"), "{answer}");
        }
    }),
    (110, "IPv6 is listened on", |_| {
        let mut stream = connect("[::1]:80".parse::<SocketAddr>().unwrap());
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(status(&read_response(&mut stream)), 301);
    }),
];

#[test]
fn behind_a_load_balancer() {
    held(BEHIND, &[("CONTAINERROLE", "web:celery")], BEHIND_ROWS);
}

const BEHIND: &str = "\
behind https load balancer: True
external hostname: justice.example.com
root: /
";

const BEHIND_ROWS: &[Row] = &[
    (11, "8081 redirects everything to https", |site| {
        for path in ["/x?y=1", "/health_check"] {
            let answer = site.get(8081, path, "10.0.0.5:8081");
            assert_eq!((status(&answer), location(&answer)), (301, Some(format!("https://justice.example.com{path}"))));
        }
    }),
    (13, "Host localhost:8000 is served", |site| {
        assert_eq!(status(&site.get(80, "/x", "localhost:8000")), 200);
        let proxied = site.ask_from(
            BALANCER,
            80,
            "GET /x HTTP/1.1\r\nHost: localhost:8000\r\nX-Forwarded-Host: justice.example.com\r\n",
        );
        assert_eq!(text(&seen(&proxied), "HTTP_X_FORWARDED_HOST"), Some(HOST));
    }),
    (41, "what an untrusted peer says of the client is overwritten", |site| {
        let environ = seen(&site.ask_from(CLIENT, 80, FORGED));
        for (name, expected) in [
            ("REMOTE_ADDR", Some(CLIENT)),
            ("HTTP_X_FORWARDED_FOR", Some(CLIENT)),
            ("HTTP_X_REAL_IP", Some(CLIENT)),
            ("HTTP_X_FORWARDED_PROTO", Some("http")),
            ("HTTP_X_FORWARDED_HOST", Some("a.example")),
            ("HTTP_X_FORWARDED_PORT", Some("80")),
            ("HTTP_FORWARDED", None),
            ("HTTP_X_FORWARDED_SSL", None),
            ("wsgi.url_scheme", Some("http")),
        ] {
            assert_eq!(text(&environ, name), expected, "{name}");
        }
    }),
    (42, "the private networks are believed behind a load balancer", |site| {
        let environ = seen(&site.ask_from(BALANCER, 80, FORGED));
        assert_eq!(text(&environ, "wsgi.url_scheme"), Some("https"));
        assert_eq!(text(&environ, "REMOTE_ADDR"), Some(OTHER_CLIENT));
        let loopback = seen(&site.ask(80, FORGED));
        assert_eq!(text(&loopback, "wsgi.url_scheme"), Some("http"), "loopback is not, unless it is said");
    }),
    (43, "the client is the right-most address that is not trusted", |site| {
        let chain = "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.7, 192.168.7.7, 10.9.9.9\r\n";
        assert_eq!(text(&seen(&site.ask_from(BALANCER, 80, chain)), "REMOTE_ADDR"), Some(CLIENT));
    }),
    (44, "and is told once, by address and by both headers", |site| {
        let environ = seen(&site.ask_from(BALANCER, 80, FORGED));
        for name in ["REMOTE_ADDR", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_FOR"] {
            assert_eq!(text(&environ, name), Some(OTHER_CLIENT), "{name}");
        }
    }),
    (45, "the access log shows that address", |site| {
        site.ask_from(BALANCER, 80, "GET /logged HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.9\r\n");
        let log = || fs::read_to_string(site.path("var/log/nginx/access.log")).unwrap_or_default();
        wait_for("the line", || log().contains("GET /logged"));
        assert!(
            log().lines().any(|line| line.starts_with("198.51.100.9 ") && line.contains("GET /logged")),
            "{}",
            log()
        );
    }),
    (99, "a health check by address is answered without a redirect", |site| {
        let answer = site.ask_from(BALANCER, 80, "GET /health_check HTTP/1.1\r\nHost: 10.0.0.5\r\n");
        assert_eq!(status(&answer), 200, "{answer}");
    }),
    (112, "explain prints it in words, and what an outer proxy needs", |site| {
        let file = site.path("da/config/config.yml");
        let run = |more: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vestibule"));
            let output = command.args(["explain", "--docassemble"]).arg(&file).args(more).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let words = run(&[]);
        for part in
            ["Listeners", ":8081: every request is answered with a redirect", "Routes", "10.0.0.0/8", "Certificates"]
        {
            assert!(words.contains(part), "{part} is missing:\n{words}");
        }
        assert!(run(&["--outer", "apache"]).contains("ProxyPass"));
        assert!(run(&["--outer", "nginx"]).contains("proxy_pass"));
        assert!(run(&["--outer", "caddy"]).contains("reverse_proxy"));
    }),
];

const FORGED: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 198.51.100.9\r\nX-Real-IP: 6.6.6.6\r\n\
     X-Forwarded-Proto: https\r\nX-Forwarded-Host: justice.example.com\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Ssl: on\r\n\
     Forwarded: for=6.6.6.6\r\n";

#[test]
fn without_tls_below_a_prefix() {
    held(PLAIN, &[], PLAIN_ROWS);
}

const PLAIN: &str = "\
root: /da/
external hostname: justice.example.com
use nginx to serve files: True
server administrator email: admin@example.com
maximum content length: 1000
web server timeout: 1
";

const PLAIN_ROWS: &[Row] = &[
    (10, "without https any host is served", |site| {
        assert_eq!(status(&site.get(80, "/da/x", "any.example")), 200);
    }),
    (14, "the prefix is the script name, the rest the path", |site| {
        let environ = seen(&site.get(80, "/da/x", HOST));
        assert_eq!((text(&environ, "SCRIPT_NAME"), text(&environ, "PATH_INFO")), (Some("/da"), Some("/x")));
    }),
    (15, "the bare prefix is the root, and its URI stays", |site| {
        let environ = seen(&site.get(80, "/da", HOST));
        assert_eq!((text(&environ, "PATH_INFO"), text(&environ, "REQUEST_URI")), (Some("/"), Some("/da")));
    }),
    (16, "a prefix ends with its segment", |site| {
        assert_eq!(status(&site.get(80, "/dashboard", HOST)), 404);
    }),
    (17, "outside the prefix there is nothing, least of all a page of a distribution", |site| {
        for path in ["/", "/index.html", "/x"] {
            let answer = site.get(80, path, HOST);
            assert_eq!(status(&answer), 404, "{path}");
            assert!(!answer.contains("Welcome"));
        }
    }),
    (20, "letter case matters", |site| {
        assert_eq!(status(&site.get(80, "/DA/x", HOST)), 404);
    }),
    (22, "slashes are merged to find the route, and the URI goes on as it came", |site| {
        let environ = seen(&site.get(80, "//da//x", HOST));
        assert_eq!((text(&environ, "REQUEST_URI"), text(&environ, "PATH_INFO")), (Some("//da//x"), Some("/x")));
    }),
    (23, "polling goes to the socket server, without the prefix", |site| {
        let told = body(&site.get(80, "/da/ws/socket.io/?EIO=4&transport=polling", HOST));
        assert!(told.starts_with("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\n"), "{told}");
    }),
    (24, "a websocket is a tunnel both ways", |_| {
        let (head, back) = upgrade(connect(EIGHTY.into()), "/da/ws/socket.io/?transport=websocket", HOST);
        assert_eq!((status(&head), back.as_str()), (101, "hello"));
    }),
    (25, "whatever the query says", |_| {
        assert_eq!(status(&upgrade(connect(EIGHTY.into()), "/da/ws/socket.io/", HOST).0), 101);
    }),
    (26, "in any letter case", |_| {
        assert_eq!(status(&upgrade(connect(EIGHTY.into()), "/da/ws/socket.io/?Transport=WebSocket", HOST).0), 101);
    }),
    (27, "the observer's double slash finds the socket server", |site| {
        let told = body(&site.get(80, "/da//ws/socket.io/?transport=polling", HOST));
        assert!(told.starts_with("GET /socket.io/?"), "{told}");
    }),
    (28, "/wsfoo is the application's", |site| {
        assert_eq!(text(&seen(&site.get(80, "/da/wsfoo", HOST)), "PATH_INFO"), Some("/wsfoo"));
    }),
    (29, "/ws/other goes to the socket server as well", |site| {
        assert!(body(&site.get(80, "/da/ws/other", HOST)).starts_with("GET /other HTTP/1.1\r\n"));
    }),
    (30, "a Location of the socket server becomes a public one", |site| {
        let answer = site.get(80, "/da/ws/moved", HOST);
        assert_eq!(location(&answer).as_deref(), Some("http://justice.example.com/da/ws/next"));
    }),
    (31, "Origin and Cookie reach the socket server unchanged", |site| {
        let request = "GET /da/ws/socket.io/ HTTP/1.1\r\nHost: a.example\r\nOrigin: https://b.example:8443\r\nCookie: a=1; b=\"2\"\r\n";
        let told = body(&site.ask(80, request)).to_ascii_lowercase();
        assert!(
            told.contains("\r\norigin: https://b.example:8443\r\n") && told.contains("\r\ncookie: a=1; b=\"2\"\r\n"),
            "{told}"
        );
    }),
    (50, "hop-by-hop fields end here, and a body of two lengths is refused", |site| {
        let request = "GET /da/x HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy: x\r\n";
        let environ = seen(&site.ask(80, request));
        for name in ["HTTP_X_HOP", "HTTP_KEEP_ALIVE", "HTTP_TE", "HTTP_PROXY"] {
            assert_eq!(text(&environ, name), None, "{name}");
        }
        let two = "POST /da/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(status(&site.ask(80, two)), 400);
    }),
    (54, "X-Accel-Redirect is a file, of the folders that may be sent from only", |site| {
        let file = site.path("sent.txt");
        fs::write(&file, "sent").unwrap();
        let answer =
            site.get(80, &format!("/da/file?X-Accel-Redirect=/xaccel{}&Content-Type=text/plain", file.display()), HOST);
        assert_eq!((status(&answer), body(&answer).as_str()), (200, "sent"), "{answer}");
        assert_eq!(header(&answer, "x-accel-redirect"), None);
        let outside = site.get(80, "/da/file?X-Accel-Redirect=/xaccel/etc/hostname", HOST);
        assert_eq!(status(&outside), 404);
        assert_eq!(status(&site.get(80, "/da/file?X-Accel-Redirect=/xaccel/tmp/none", HOST)), 404);
    }),
    (55, "names with a space, an escape, a question mark and UTF-8", |site| {
        for (name, spelled) in [
            ("a b.txt", "a%20b.txt"),
            ("%41.txt", "%2541.txt"),
            ("q?.txt", "q%3F.txt"),
            ("résumé.txt", "r%C3%A9sum%C3%A9.txt"),
        ] {
            fs::write(site.path(name), name).unwrap();
            for header in ["X-Accel-Redirect=/xaccel", "X-Sendfile="] {
                let path = format!("/da/file?{header}{}/{spelled}", site.served.folder.path().display());
                assert_eq!(body(&site.get(80, &path, HOST)), name, "{header}");
            }
        }
    }),
    (56, "the application's other fields stay on a file", |site| {
        fs::write(site.path("kept.txt"), "kept").unwrap();
        let path = format!(
            "/da/file?X-Accel-Redirect=/xaccel{}&Content-Security-Policy=x&Access-Control-Allow-Origin=*&Set-Cookie=a%3D1&\
             Strict-Transport-Security=max-age%3D1&Cache-Control=private&Content-Disposition=attachment",
            site.path("kept.txt").display()
        );
        let answer = site.get(80, &path, HOST);
        for (name, value) in [
            ("content-security-policy", "x"),
            ("access-control-allow-origin", "*"),
            ("set-cookie", "a=1"),
            ("strict-transport-security", "max-age=1"),
            ("cache-control", "private"),
            ("content-disposition", "attachment"),
        ] {
            assert_eq!(header(&answer, name).as_deref(), Some(value), "{answer}");
        }
    }),
    (57, "ranges, conditions and HEAD", |site| {
        fs::write(site.path("range.txt"), "0123456789").unwrap();
        let path = format!("/da/file?X-Accel-Redirect=/xaccel{}", site.path("range.txt").display());
        let ask =
            |method: &str, fields: &str| site.ask(80, &format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}"));
        let part = ask("GET", "Range: bytes=2-4\r\n");
        assert_eq!((status(&part), body(&part).as_str()), (206, "234"));
        assert_eq!(status(&ask("GET", "Range: bytes=20-\r\n")), 416);
        let tag = header(&part, "etag").unwrap();
        assert_eq!(status(&ask("GET", &format!("If-None-Match: {tag}\r\n"))), 304);
        let date = header(&part, "last-modified").unwrap();
        assert_eq!(status(&ask("GET", &format!("If-Modified-Since: {date}\r\n"))), 304);
        let head = ask("HEAD", "");
        assert_eq!((header(&head, "content-length").as_deref(), body(&head).as_str()), (Some("10"), ""));
    }),
    (58, "a client has no way to /xaccel/", |site| {
        assert_eq!(status(&site.get(80, "/xaccel/etc/passwd", HOST)), 404);
        let environ = seen(&site.get(80, "/da/xaccel/etc/passwd", HOST));
        assert_eq!(text(&environ, "PATH_INFO"), Some("/xaccel/etc/passwd"), "the application's business");
    }),
    (60, "a body beyond `maximum content length` is refused before it is read", |site| {
        let length = "POST /da/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n";
        let answer = site.ask(80, length);
        assert_eq!((status(&answer), header(&answer, "connection").as_deref()), (413, Some("close")));
        assert!(answer.contains("1000 "), "the limit is named: {answer}");
        let chunked = format!(
            "POST /da/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n7d1\r\n{}\r\n0\r\n",
            "x".repeat(2001)
        );
        assert_eq!(status(&site.ask(80, &chunked)), 413, "counted");
    }),
    (65, "headers up to 32 KiB are taken, more is a 431", |site| {
        let with = |length: usize| {
            site.ask(80, &format!("GET /da/x HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n", "x".repeat(length)))
        };
        assert_eq!(status(&with(20_000)), 200);
        assert_eq!(status(&with(40_000)), 431);
    }),
    (94, "no answer within `web server timeout` is a 504 that names the administrator", |site| {
        let answer = site.get(80, "/da/slow?3", HOST);
        assert_eq!(status(&answer), 504);
        assert!(answer.contains("admin@example.com") && answer.contains("Try again"), "{answer}");
    }),
    (96, "an idle connection is closed after ten seconds", |site| {
        let config: Value = serde_json::from_str(&body(&site.served.get("admin.sock", "/config"))).unwrap();
        assert_eq!(config["limits"]["keep_alive"], serde_json::json!({ "secs": 10, "nanos": 0 }));
    }),
    (98, "the application's health page is passed on, ours is on the admin socket", |site| {
        let environ = seen(&site.get(80, "/da/health_check?ready=1", HOST));
        assert_eq!(text(&environ, "QUERY_STRING"), Some("ready=1"));
        assert_eq!(status(&site.served.get("admin.sock", "/live")), 200);
        assert_eq!(status(&site.served.get("admin.sock", "/ready")), 200);
    }),
    (100, "the access log is nginx's, in the combined format", |site| {
        site.ask(80, "GET /da/combined HTTP/1.1\r\nHost: a\r\nReferer: r\r\nUser-Agent: u\r\n");
        let log = || fs::read_to_string(site.path("var/log/nginx/access.log")).unwrap();
        wait_for("the line", || log().contains("/da/combined"));
        let line = log().lines().find(|line| line.contains("/da/combined")).unwrap().to_owned();
        assert!(line.starts_with("127.0.0.1 - - [") && line.contains("] \"GET /da/combined HTTP/1.1\" 200 "), "{line}");
        assert!(line.ends_with(" \"r\" \"u\""), "{line}");
        let found = fs::metadata(site.path("var/log/nginx/access.log")).unwrap();
        let adm = uzers::get_group_by_name("adm").map_or(0, |group| group.gid());
        assert_eq!((found.mode() & 0o777, found.gid()), (0o640, adm));
    }),
    (102, "what is wrong is in the error log, at the place that is shipped as such", |site| {
        assert!(site.path("var/log/nginx/error.log").exists());
        let log = || fs::read_to_string(site.path("var/log/nginx/error.log")).unwrap();
        site.get(80, "/da/slow?3", HOST);
        wait_for("the error", || log().contains("upstream failed"));
        assert!(log().lines().all(|line| line.contains("] ") && line.contains("#0: ")), "{}", log());
    }),
    (105, "CORS is the application's: its fields pass, and OPTIONS reaches it", |site| {
        let environ = seen(&site.ask(
            80,
            "OPTIONS /da/x HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\nAccess-Control-Request-Method: PUT\r\n",
        ));
        assert_eq!(text(&environ, "REQUEST_METHOD"), Some("OPTIONS"));
        assert_eq!(text(&environ, "HTTP_ACCESS_CONTROL_REQUEST_METHOD"), Some("PUT"));
        let answer = site.get(
            80,
            "/da/file?Access-Control-Allow-Origin=https://b&Access-Control-Allow-Credentials=true&Content-Length=0",
            HOST,
        );
        assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some("https://b"));
    }),
    (108, "error pages are HTML for people and JSON for programs", |site| {
        let page = site.get(80, "/elsewhere", HOST);
        assert!(header(&page, "content-type").unwrap().starts_with("text/html"), "{page}");
        let json = site.ask(80, "GET /elsewhere HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n");
        assert_eq!(header(&json, "content-type").as_deref(), Some("application/json"));
        let api = site.get(80, "/da/api/slow?3", HOST);
        assert_eq!((status(&api), header(&api, "content-type").as_deref()), (504, Some("application/json")));
    }),
];

const EIGHTY: ([u8; 4], u16) = ([127, 0, 0, 1], 80);

#[test]
fn the_release_line_of_2018_behind_apache() {
    held(APACHE, &[], APACHE_ROWS);
}

const APACHE: &str = "\
web server: apache
root: /da/
cross site domain: https://www.example.com
maximum content length: null
";

const APACHE_ROWS: &[Row] = &[
    (51, "X-Sendfile is a file, and the field is not shown", |site| {
        fs::write(site.path("sent.txt"), "sent").unwrap();
        let answer =
            site.get(80, &format!("/da/file?X-Sendfile={}&Content-Length=4", site.path("sent.txt").display()), HOST);
        assert_eq!((status(&answer), body(&answer).as_str()), (200, "sent"));
        assert_eq!(header(&answer, "x-sendfile"), None);
    }),
    (52, "outside the folders, after links, is a 404 and a line", |site| {
        std::os::unix::fs::symlink("/etc/hostname", site.path("link")).unwrap();
        for path in
            ["/etc/hostname".to_owned(), "/usr/../etc/hostname".to_owned(), site.path("link").display().to_string()]
        {
            assert_eq!(status(&site.get(80, &format!("/da/file?X-Sendfile={path}"), HOST)), 404, "{path}");
        }
        let log = || fs::read_to_string(site.path("var/log/apache2/error.log")).unwrap_or_default();
        wait_for("the line", || log().contains("/etc/hostname"));
    }),
    (53, "a file that is not there is a 404", |site| {
        assert_eq!(status(&site.get(80, "/da/file?X-Sendfile=/tmp/there/is/none", HOST)), 404);
    }),
    (61, "null is no limit", |_| {
        let request = format!(
            "POST /da/digest HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\nConnection: close\r\n\r\n{}",
            "x".repeat(20_000_000)
        );
        let mut stream = connect(EIGHTY.into());
        stream.write_all(request.as_bytes()).unwrap();
        assert!(read_response(&mut stream).contains("20000000 "));
    }),
    (106, "the old cross site domain has its four headers", |site| {
        let answer = site.get(80, "/da/x", HOST);
        assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some("https://www.example.com"));
        assert_eq!(header(&answer, "access-control-allow-credentials").as_deref(), Some("true"));
        assert_eq!(header(&answer, "access-control-allow-headers").as_deref(), Some("Content-Type, origin"));
        assert_eq!(header(&answer, "access-control-allow-methods").as_deref(), Some("GET, POST, OPTIONS, PUT, DELETE"));
    }),
];
