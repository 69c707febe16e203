//! F67, F68, and of F83 to F111 what concerns the program as it is started, changed and stopped.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::unix::fs::chown,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{
    super::support::{
        applications::seen,
        body,
        clients::{block_on, client, tls_connect},
        connect, header,
        network::in_network,
        program, raw, read_response, status, wait_for,
    },
    installed::{HOST, Installed, certify},
    www_data,
};

const EIGHTY: ([u8; 4], u16) = ([127, 0, 0, 1], 80);
const SECURE: ([u8; 4], u16) = ([127, 0, 0, 1], 443);
const FRONT: &str = "use https: True\nexternal hostname: justice.example.com\n";

fn on_site(config: &'static str, row: impl FnOnce(Installed) + Send + 'static) {
    in_network(move || {
        if let Some(site) = Installed::start(config) {
            row(site);
        }
    });
}

/// A request that is inside for `seconds`.
fn slow(site: &Installed, seconds: &str) -> TcpStream {
    let mut stream = connect(EIGHTY.into());
    write!(stream, "GET /slow?{seconds} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_for("the request to be inside", || site.served.status()["upstreams"][0]["in_flight"] == 1);
    stream
}

#[test]
fn f67_and_f68_new_files_of_root_alone_are_served_and_what_is_open_stays_open() {
    on_site(FRONT, |site| {
        block_on(async {
            let mut open = tls_connect(SECURE.into(), HOST, client(&[&site.authority], &["http/1.1"])).await.unwrap();
            let mut ask = async || {
                open.write_all(format!("HEAD /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(open.read_u8().await.unwrap());
                }
                String::from_utf8(head).unwrap()
            };
            assert_eq!(status(&ask().await), 200);
            let other = certify(&site.path("etc/ssl/docassemble"), "nginx", HOST, true);
            let replaced = Instant::now();
            while tls_connect(SECURE.into(), HOST, client(&[&other], &[])).await.is_err() {
                assert!(replaced.elapsed() < Duration::from_secs(5), "not within seconds");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(status(&ask().await), 200, "on the connection of before");
        });
    });
}

#[test]
fn f83_it_stays_in_the_foreground_ends_with_0_on_term_and_otherwise_on_a_bad_configuration() {
    in_network(|| {
        let mut site = Installed::bare("root: /\n", &[], |_| {});
        assert_eq!(site.served.child.try_wait().unwrap(), None, "in the foreground");
        site.served.signal("TERM");
        assert_eq!(site.served.ended().code(), Some(0), "{}", site.served.events());

        fs::write(site.path("bad.yml"), "root: [\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        let output = command.args(["serve", "--docassemble"]).arg(site.path("bad.yml")).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    });
}

/// A stop by `signal`, while a request is inside.
fn drains(signal: &'static str) {
    on_site("root: /\n", move |mut site| {
        let mut inside = slow(&site, "0.4");
        site.served.signal(signal);
        wait_for("the door to close", || TcpStream::connect(SocketAddr::from(EIGHTY)).is_err());
        assert_eq!(status(&read_response(&mut inside)), 200);
        assert_eq!(site.served.ended().code(), Some(0), "{}", site.served.events());
    });
}

#[test]
fn f84_term_stops_accepting_and_ends_what_is_inside() {
    drains("TERM");
}

#[test]
fn f84_int_stops_accepting_and_ends_what_is_inside() {
    drains("INT");
}

#[test]
fn f84_quit_stops_accepting_and_ends_what_is_inside() {
    drains("QUIT");
}

#[test]
fn f84_a_stop_takes_less_than_supervisor_gives_and_a_second_signal_does_not_wait() {
    on_site("root: /\n", |mut site| {
        assert_eq!(site.plan()["drain"]["secs"], 18);
        site.configure("web server: apache\n");
        // A worker that leaves may answer still.
        wait_for("the patience of Apache's line", || site.plan()["drain"]["secs"] == 58);

        let _inside = slow(&site, "9");
        let began = Instant::now();
        site.served.signal("TERM");
        wait_for("the stop to begin", || site.served.events().contains("stopping"));
        site.served.signal("TERM");
        assert_eq!(site.served.ended().code(), Some(1), "something was cut");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    });
}

#[test]
fn f86_hup_reads_the_file_and_a_bad_one_changes_nothing() {
    in_network(|| {
        let config = "use https: True\nexternal hostname: justice.example.com\n";
        let site = Installed::bare(config, &[], |_| {});
        let target = || header(&site.get(80, "/x", HOST), "location").unwrap_or_default();
        fs::write(site.path("da/config/config.yml"), config.replace("justice", "other")).unwrap();
        site.served.signal("HUP");
        wait_for("the new host", || target() == "https://other.example.com/x");

        fs::write(site.path("da/config/config.yml"), "external hostname: not a name\nuse https: True\n").unwrap();
        site.served.signal("HUP");
        // Read while it is written it has another fault, for a moment.
        let refused = || site.served.status()["processes"]["refused"]["faults"].to_string();
        wait_for("the refusal", || refused().contains("external hostname"));
        assert_eq!(target(), "https://other.example.com/x");
    });
}

#[test]
fn f88_keys_with_underscores_count_and_the_environment_where_it_takes_precedence() {
    in_network(|| {
        let config = "external_hostname: written.example\nuse_https: true\n";
        let target = |variables: &[(&str, &str)]| {
            let site = Installed::bare(config, variables, |_| {});
            header(&site.get(80, "/x", HOST), "location")
        };
        let variables = [("DAHOSTNAME", "environment.example"), ("ENVIRONMENT_TAKES_PRECEDENCE", "true")];
        assert_eq!(target(&[]).as_deref(), Some("https://written.example/x"));
        assert_eq!(target(&variables[..1]).as_deref(), Some("https://written.example/x"), "the file is first");
        assert_eq!(target(&variables).as_deref(), Some("https://environment.example/x"));
        let switch = [("USEHTTPS", "false"), variables[1]];
        assert_eq!(target(&switch), None);
    });
}

#[test]
fn f89_the_word_true_with_a_capital_has_one_effect_everywhere_and_a_warning() {
    in_network(|| {
        let variables = [("USEHTTPS", "True"), ("ENVIRONMENT_TAKES_PRECEDENCE", "true")];
        let site = Installed::bare("external hostname: justice.example.com\n", &variables, |_| {});
        assert_eq!(header(&site.get(80, "/x", HOST), "location").as_deref(), Some("https://justice.example.com/x"));
        assert!(TcpStream::connect(SocketAddr::from(SECURE)).is_ok(), "and TLS is on as well");
        assert!(site.served.events().contains("`True` is taken for true; write `true`"), "{}", site.served.events());
    });
}

#[test]
fn f91_the_starting_page_is_on_80_without_and_on_443_with_tls() {
    let is_page = |answer: &str, ready: &str| {
        assert_eq!(status(answer), 503, "{answer}");
        assert_eq!(header(answer, "cache-control").as_deref(), Some("no-store"));
        assert!(header(answer, "retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s > 0)));
        assert!(answer.contains(&format!("data-ready=\"{ready}\"")), "{answer}");
    };
    in_network(move || {
        let site = Installed::bare("root: /da/\n", &[], |_| {});
        wait_for("the first look", || site.served.status()["upstreams"][0]["readiness"] == "starting");
        is_page(&site.get(80, "/da/interview?i=1", HOST), "/da/health_check?ready=1");
        assert_eq!(site.get(80, "/", HOST).split(' ').nth(1), Some("404"));

        site.configure(&format!("root: /\n{FRONT}"));
        wait_for("the first look", || site.served.status()["upstreams"][0]["readiness"] == "starting");
        is_page(&site.get_tls("/interview", HOST), "/health_check?ready=1");
    });
}

#[test]
fn f92_the_ports_are_open_before_the_application_is_there_and_never_closed_while_it_comes() {
    in_network(|| {
        if program("uwsgi").is_none() {
            return;
        }
        let mut site = Installed::bare(FRONT, &[], |_| {});
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let asking = thread::spawn({
            let done = std::sync::Arc::clone(&done);
            move || {
                let mut asked = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer =
                        raw(EIGHTY.into(), format!("GET /x HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));
                    assert_eq!(status(&answer), 301);
                    drop(TcpStream::connect(SocketAddr::from(SECURE)).expect("443 is open"));
                    asked += 1;
                }
                asked
            }
        });
        assert_eq!(status(&site.get_tls("/x", HOST)), 503);
        assert!(site.start_application());
        wait_for("the application", || status(&site.get_tls("/x", HOST)) == 200);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(asking.join().unwrap() > 5);
    });
}

#[test]
fn f93_where_nothing_listens_any_more_there_is_a_page_and_it_recovers_by_itself() {
    in_network(|| {
        let config = "root: /\nserver administrator email: admin@example.com\n";
        let overlay = |root: &Path| fs::write(root.join("overlay.yml"), "upstreams: { app: { hold: 0 } }\n").unwrap();
        let Some(mut site) = Installed::start_with(config, &[], overlay) else { return };
        site.stop_application();
        let answer = site.get(80, "/x", HOST);
        assert_eq!(status(&answer), 503, "{answer}");
        assert!(answer.contains("mailto:admin@example.com") && header(&answer, "retry-after").is_some(), "{answer}");
        assert!(site.start_application());
        wait_for("the application", || status(&site.get(80, "/x", HOST)) == 200);
    });
}

#[test]
fn f95_a_route_has_a_timeout_of_its_own() {
    in_network(|| {
        let overlay = "routes: [{ prefix: /da/api/, upstream: app, timeout: 20s }]\n";
        let prepare = |root: &Path| fs::write(root.join("overlay.yml"), overlay).unwrap();
        let Some(site) = Installed::start_with("root: /da/\nweb server timeout: 1\n", &[], prepare) else { return };
        let ask = |path: &str| status(&site.get(80, path, HOST));
        thread::scope(|scope| {
            let shorter = scope.spawn(|| ask("/da/slow?1.4"));
            assert_eq!(ask("/da/api/slow?1.4"), 200);
            assert_eq!(shorter.join().unwrap(), 504);
        });
    });
}

#[test]
fn f98_an_application_that_is_not_ready_says_so_itself_and_we_are_alive_on_our_own_socket() {
    on_site("root: /\n", |site| {
        fs::write(site.path("unready"), "").unwrap();
        let answer = site.get(80, "/health_check?ready=1", HOST);
        assert_eq!((status(&answer), body(&answer).as_str()), (400, "not"));
        assert_eq!(status(&site.get(80, "/health_check", HOST)), 200);
        assert_eq!(status(&site.served.get("admin.sock", "/live")), 200);
        assert_eq!(seen(&site.get(80, "/live", HOST))["PATH_INFO"], "/live", "the door has no page of ours");
    });
}

#[test]
fn f109_another_http_port_has_the_starting_page_and_comes_from_either_place() {
    in_network(|| {
        for (config, variables) in [("http port: 8000\n", &[][..]), ("root: /\n", &[("PORT", "8000")])] {
            let site = Installed::bare(config, variables, |_| {});
            wait_for("the first look", || site.served.status()["upstreams"][0]["readiness"] == "starting");
            let answer = site.get(8000, "/x", HOST);
            assert_eq!(status(&answer), 503);
            assert!(answer.contains("data-ready=\"/health_check?ready=1\""), "{answer}");
            assert!(TcpStream::connect(SocketAddr::from(EIGHTY)).is_err(), "{config}");
        }
    });
}

#[test]
fn f111_it_serves_port_80_as_another_user_with_one_capability_where_only_its_own_folders_are_writable() {
    in_network(|| {
        if program("setpriv").is_none() {
            return;
        }
        let become_user = "setpriv --reuid=www-data --regid=www-data --clear-groups --inh-caps=+net_bind_service \
                           --ambient-caps=+net_bind_service --bounding-set=-all,+net_bind_service";
        let prepare = |root: &Path| {
            for folder in ["var/lib", "var/log/nginx", "run"] {
                chown(root.join(folder), Some(www_data()), None).unwrap();
            }
        };
        let variables = [("BECOME", become_user), ("READ_ONLY", "yes")];
        let Some(site) = Installed::start_with("root: /\n", &variables, prepare) else { return };
        let process = format!("/proc/{}", site.served.child.id());
        let said = fs::read_to_string(format!("{process}/status")).unwrap();
        let user = www_data();
        assert!(said.contains(&format!("Uid:\t{user}\t{user}\t{user}\t{user}")), "{said}");
        assert!(said.contains("CapEff:\t0000000000000400"), "{said}");
        let mounts = fs::read_to_string(format!("{process}/mounts")).unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
        assert!(root.split([' ', ',']).any(|word| word == "ro"), "{root}");

        assert_eq!(status(&site.get(80, "/x", HOST)), 200);
        let mut upload = connect(EIGHTY.into());
        write!(upload, "POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").unwrap();
        upload.write_all(&vec![b'x'; 1_000_000]).unwrap();
        assert!(body(&read_response(&mut upload)).starts_with("1000000 "), "through the spool");
    });
}
