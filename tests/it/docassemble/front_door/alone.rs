//! Rows that need a site of their own, since they change it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::super::{
    super::support::{
        body,
        clients::{block_on, client, tls_connect},
        connect, header,
        network::in_network,
        read_response,
        served::signal,
        status, wait_for,
    },
    installed::{HOST, Installed, certify},
};

const FRONT: &str = "use https: True\nexternal hostname: justice.example.com\n";

fn on_site(config: &'static str, row: impl FnOnce(Installed) + Send + 'static) {
    in_network(move || {
        if let Some(site) = Installed::start(config) {
            row(site);
        }
    });
}

/// The same, where nobody waits five seconds for a socket server that is not there.
fn on_site_that_holds_sockets_briefly(config: &'static str, row: impl FnOnce(Installed) + Send + 'static) {
    in_network(move || {
        let overlay = "upstreams: { websockets: { hold: 200ms } }\n";
        let prepare = |root: &Path| fs::write(root.join("overlay.yml"), overlay).unwrap();
        if let Some(site) = Installed::start_with(config, &[], prepare) {
            row(site);
        }
    });
}

#[test]
fn f18_a_root_without_its_final_slash_is_taken_with_a_warning() {
    on_site("root: /da\n", |site| {
        assert_eq!(status(&site.get(80, "/da/x", HOST)), 200);
        assert!(site.served.events().contains("root: write `/da/`"), "{}", site.served.events());
    });
}

#[test]
fn f19_index_html_at_the_root_is_the_applications() {
    on_site("root: /\n", |site| {
        assert!(body(&site.get(80, "/index.html", HOST)).contains("\"PATH_INFO\": \"/index.html\""));
    });
}

#[test]
fn f35_and_f87_the_socket_server_and_all_else_change_by_hot_reload_and_tunnels_live_on() {
    on_site_that_holds_sockets_briefly("root: /\n", |site| {
        let mut tunnel = connect(([127, 0, 0, 1], 80).into());
        write!(
            tunnel,
            "GET /ws/socket.io/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        assert!(super::super::super::support::read_head(&mut tunnel).starts_with("HTTP/1.1 101"));

        site.configure("root: /\nwebsockets port: 5001\n");
        assert_eq!(status(&site.get(80, "/ws/socket.io/", HOST)), 503, "nobody listens on 5001");
        site.configure("root: /other/\nmaximum content length: 10\nweb server timeout: 1\nbehind https load balancer: True\nexternal hostname: a.example\n");
        assert_eq!(status(&site.get(80, "/x", HOST)), 404, "another root");
        assert_eq!(
            location(&site.get(8081, "/x", HOST)).as_deref(),
            Some("https://a.example/x"),
            "the balancer's switch"
        );
        let large = "POST /other/x HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n";
        assert_eq!(status(&site.ask(80, large)), 413, "another limit");
        site.configure(FRONT);
        assert_eq!(location(&site.get(80, "/x", HOST)).as_deref(), Some("https://justice.example.com/x"), "https");
        assert_eq!(status(&site.get_tls("/x", HOST)), 200);

        tunnel.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        tunnel.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    });
}

fn location(answer: &str) -> Option<String> {
    header(answer, "location")
}

#[test]
fn f36_an_exposed_socket_server_is_found_where_it_listens() {
    // It listens on loopback here, and could on the addresses of the test's network, which are tried first.
    on_site("root: /\nexpose websockets: True\n", |site| {
        assert!(body(&site.get(80, "/ws/socket.io/", HOST)).starts_with("GET /socket.io/ "));
        let endpoints = site.served.status()["upstreams"][1]["endpoints"].to_string();
        assert!(endpoints.contains("127.0.0.1:5000") && endpoints.contains("203.0.113.7:5000"), "{endpoints}");
    });
}

#[test]
fn f34_a_socket_server_that_is_not_there_is_a_503_in_the_clients_form_and_one_that_is_back_answers_at_once() {
    on_site_that_holds_sockets_briefly("root: /\nwebsockets port: 5001\n", |site| {
        let answer = site.ask(80, "GET /ws/socket.io/ HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n");
        assert_eq!((status(&answer), header(&answer, "content-type").as_deref()), (503, Some("application/json")));
        assert!(site.served.events().contains("127.0.0.1:5001"), "{}", site.served.events());
        let listener = std::net::TcpListener::bind("127.0.0.1:5001").unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                super::super::super::support::read_request(&mut stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
            }
        });
        assert_eq!(status(&site.get(80, "/ws/socket.io/", HOST)), 200, "at once, when it is back");
    });
}

#[test]
fn f38_a_socket_server_that_is_not_wanted_is_not_asked() {
    on_site("root: /\nenable monitor: False\n", |site| {
        let answer = site.get(80, "/ws/socket.io/", HOST);
        assert!(body(&answer).contains("\"PATH_INFO\": \"/ws/socket.io/\""), "the application's to answer: {answer}");
        let missing = site.get(80, "/ws/file?status=404%20Not%20Found", HOST);
        assert_eq!(status(&missing), 404, "as docassemble answers");
        assert!(!site.served.events().contains("WARN"), "{}", site.served.events());
    });
}

#[test]
fn f68_and_f69_certificates_are_exchanged_without_a_restart_and_a_bad_pair_changes_nothing() {
    on_site(FRONT, |site| {
        let folder = site.path("etc/ssl/docassemble");
        let mut open = connect(([127, 0, 0, 1], 443).into());
        let other = certify(&folder, "nginx", HOST, true);
        let handshake = |authority: &rustls_pki_types::CertificateDer<'static>| {
            let config = client(&[authority], &[]);
            block_on(async { tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.is_ok() })
        };
        wait_for("the new certificate", || handshake(&other));
        fs::write(folder.join("nginx.key"), "nonsense").unwrap();
        wait_for("the refusal", || site.served.status()["processes"]["refused"].is_object());
        assert!(handshake(&other), "the old one stays");
        let checked = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!(
                "mount --bind {}/etc/ssl /etc/ssl && exec {} check --docassemble {}/da/config/config.yml",
                site.served.folder.path().display(),
                env!("CARGO_BIN_EXE_vestibule"),
                site.served.folder.path().display()
            ))
            .output()
            .unwrap();
        assert_eq!(checked.status.code(), Some(78), "{checked:?}");
        assert!(open.write_all(b"x").is_ok());
    });
}

#[test]
fn f70_without_a_certificate_one_is_made_and_never_the_public_sample_is_served() {
    in_network(|| {
        let sample = include_str!("sample.crt");
        let site = Installed::start_with(FRONT, &[], |root| {
            let folder = root.join("etc/ssl/docassemble");
            fs::write(folder.join("nginx.crt"), sample).unwrap();
        });
        let Some(site) = site else { return };
        let status = site.served.status();
        assert_eq!(status["certificates"][0]["source"], "self-signed", "{status}");
        assert_eq!(status["certificates"][0]["names"][0], HOST);
        assert!(
            site.served.events().contains("it is docassemble's sample, whose key everybody has"),
            "{}",
            site.served.events()
        );
    });
}

#[test]
fn f66_apaches_names_are_served_with_the_chain_in_its_own_file() {
    in_network(|| {
        let mut authority = None;
        let site = Installed::start_with(
            "web server: apache\nuse https: True\nexternal hostname: justice.example.com\n",
            &[],
            |root| {
                let folder = root.join("etc/ssl/docassemble");
                fs::remove_file(folder.join("nginx.crt")).unwrap();
                authority = Some(certify(&folder, "apache", HOST, false));
            },
        );
        let Some(_site) = site else { return };
        let chain = block_on(async {
            let config = client(&[authority.as_ref().unwrap()], &[]);
            let stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap().len()
        });
        assert_eq!(chain, 2);
    });
}

#[test]
fn f71_and_f72_protocols_and_ciphers_are_those_of_config_yml() {
    on_site(
        "use https: True\nexternal hostname: justice.example.com\nnginx ssl protocols: TLSv1.2\n\
         nginx ssl ciphers: ECDHE-ECDSA-AES256-GCM-SHA384:HIGH:!AES128:!CHACHA20;\n",
        |site| {
            let spoken = block_on(async {
                let config = client(&[&site.authority], &[]);
                let stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
                let session = stream.get_ref().1;
                (session.protocol_version().unwrap(), session.negotiated_cipher_suite().unwrap().suite())
            });
            let cipher = rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
            assert_eq!(spoken, (rustls::ProtocolVersion::TLSv1_2, cipher));
            let generation = site.served.generation();
            fs::write(site.path("da/config/config.yml"), format!("{FRONT}nginx ssl ciphers: RC4\n")).unwrap();
            wait_for("the refusal", || site.served.status()["processes"]["refused"].is_object());
            let refused = site.served.status()["processes"]["refused"]["faults"].to_string();
            assert!(refused.contains("it leaves no cipher that is spoken here"), "{refused}");
            assert_eq!(site.served.generation(), generation);
        },
    );
}

#[test]
fn f84_and_f85_a_stop_of_the_whole_group_drains() {
    on_site("root: /\n", |mut site| {
        let mut slow = connect(([127, 0, 0, 1], 80).into());
        slow.write_all(b"GET /slow?1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        wait_for("the request to be inside", || site.served.status()["upstreams"][0]["in_flight"] == 1);
        let worker = site.served.worker();
        signal("TERM", site.served.child.id());
        signal("TERM", worker);
        assert_eq!(status(&read_response(&mut slow)), 200, "it was inside");
        assert!(site.served.ended().success());
    });
}

#[test]
fn f90_a_touch_of_docassemble_wsgi_costs_nobody_a_request() {
    on_site("root: /\n", |site| {
        let log = || fs::read_to_string(site.path("uwsgi.log")).unwrap().matches("spawned uWSGI worker 1").count();
        let before = log();
        let file = fs::File::options().write(true).open(site.path("docassemble.wsgi")).unwrap();
        // uWSGI looks at whole seconds.
        file.set_modified(std::time::SystemTime::now() + Duration::from_secs(10)).unwrap();
        let began = Instant::now();
        while log() == before {
            assert_eq!(status(&site.get(80, "/x", HOST)), 200);
            assert!(began.elapsed() < Duration::from_secs(10), "not reloaded");
        }
        for _ in 0..20 {
            assert_eq!(status(&site.get(80, "/x", HOST)), 200);
        }
    });
}

#[test]
fn f101_usr1_opens_the_logs_anew() {
    on_site("root: /\n", |site| {
        site.get(80, "/first", HOST);
        let log = site.path("var/log/nginx/access.log");
        wait_for("the line", || fs::read_to_string(&log).is_ok_and(|text| text.contains("/first")));
        fs::rename(&log, site.path("var/log/nginx/access.log.1")).unwrap();
        site.served.signal("USR1");
        wait_for("a new file", || log.exists());
        wait_for("lines in it", || {
            site.get(80, "/second", HOST);
            fs::read_to_string(&log).is_ok_and(|text| text.contains("/second"))
        });
    });
}

#[test]
fn f109_another_http_port_is_listened_on_and_443_stays() {
    on_site("http port: 8000\nuse https: True\nexternal hostname: justice.example.com\n", |site| {
        assert_eq!(location(&site.get(8000, "/x", HOST)).as_deref(), Some("https://justice.example.com/x"));
        assert_eq!(status(&site.get_tls("/x", HOST)), 200);
        assert!(TcpStream::connect("127.0.0.1:80").is_err());
    });
}

#[test]
fn f59_without_offload_a_named_file_is_not_sent() {
    on_site("web server: apache\nxsendfile: False\nroot: /\n", |site| {
        fs::write(site.path("sent.txt"), "sent").unwrap();
        let answer = site.get(80, &format!("/file?X-Sendfile={}", site.path("sent.txt").display()), HOST);
        assert!(
            status(&answer) == 404 && !answer.contains("sent\n") && header(&answer, "x-sendfile").is_none(),
            "{answer}"
        );
    });
}

#[test]
fn f93_a_backend_that_dies_in_a_request_is_a_page_that_names_the_administrator_and_it_recovers() {
    on_site("root: /\nserver administrator email: admin@example.com\n", |site| {
        let mut lost = connect(([127, 0, 0, 1], 80).into());
        lost.write_all(b"POST /slow?9 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
        wait_for("the request to be inside", || site.served.status()["upstreams"][0]["in_flight"] == 1);
        let log = fs::read_to_string(site.path("uwsgi.log")).unwrap();
        let worker =
            log.split_once("spawned uWSGI worker 1 (pid: ").unwrap().1.split(',').next().unwrap().parse().unwrap();
        signal("KILL", worker);
        let answer = read_response(&mut lost);
        assert_eq!(status(&answer), 502, "{answer}");
        assert!(answer.contains("admin@example.com") && answer.contains("<h1>"), "{answer}");
        wait_for("another worker", || status(&site.get(80, "/x", HOST)) == 200);
    });
}
