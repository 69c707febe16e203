//! The admin endpoint over TCP: who gets in, who does not, and what a reload and an upgrade change of it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
};

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::{
    keeper::is_root,
    support::{
        Backend, body,
        clients::{block_on, certificate, client, connect_from},
        connect, header, ok, raw, read_response,
        served::{self, Served},
        status, to, wait_for,
    },
    upgrade::{install, installed_in},
};

const TOKEN: &str = "dGhlIHRva2VuIG9mIGEgdGVzdCwgd2hpY2ggaXMgbG9uZw==";
const OTHER: &str = "b25lIG1vcmUgdG9rZW4gb2YgYSB0ZXN0LCBqdXN0IGFzIGxvbmc=";
const NAME: &str = "admin.example";

/// A folder with a certificate, its key and a token.
fn place() -> (TempDir, CertificateDer<'static>) {
    let folder = served::folder();
    let certificate = certificate(folder.path(), "admin", &[NAME]);
    write_token(&folder.path().join("token"), TOKEN);
    (folder, certificate)
}

fn write_token(file: &Path, token: &str) {
    fs::write(file, format!("{token}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn configuration(backend: &Backend, listen: &str) -> String {
    let admin = format!(
        "admin: {{ socket: 'unix:{{dir}}/admin.sock', listen: '{listen}', certificate: '{{dir}}/admin.crt', \
         key: '{{dir}}/admin.key', token_file: '{{dir}}/token' }}"
    );
    to(backend.address, &admin)
}

fn start() -> (Served, CertificateDer<'static>) {
    let (folder, certificate) = place();
    (Served::start_in(folder, &configuration(&ok(), "127.0.0.1:0"), |_| {}), certificate)
}

/// Where it was bound last.
fn address(served: &Served) -> SocketAddr {
    let events = served.events();
    let bound = events.lines().rfind(|line| line.contains("the admin endpoint is bound to TCP"));
    bound.and_then(|line| line.split_once("address=")?.1.trim().parse().ok()).unwrap_or_else(|| panic!("{events}"))
}

/// Sends `request` over TLS from `own`, with the fields of `fields`, and reads to the end.
fn ask_from(own: &str, at: SocketAddr, believed: &CertificateDer<'static>, request: &str, fields: &str) -> String {
    let stream = connect_from(own, at);
    stream.set_nonblocking(true).unwrap();
    block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let connector = TlsConnector::from(Arc::new(client(&[believed], &["http/1.1"])));
        let mut stream = connector.connect(NAME.try_into().unwrap(), stream).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: {NAME}\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    })
}

fn ask(at: SocketAddr, believed: &CertificateDer<'static>, request: &str, fields: &str) -> String {
    ask_from("127.0.0.1", at, believed, request, fields)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn whoever_has_the_token_gets_over_tls_what_the_socket_has() {
    let (served, certificate) = start();
    let at = address(&served);
    let ask = |request: &str| ask(at, &certificate, request, &bearer(TOKEN));

    let metrics = ask("GET /metrics");
    assert_eq!(status(&metrics), 200, "{metrics}");
    assert!(header(&metrics, "content-type").unwrap().starts_with("application/openmetrics-text"), "{metrics}");
    assert!(body(&metrics).contains("\nvestibule_generation 1\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    for path in ["/live", "/ready", "/config"] {
        assert_eq!(body(&ask(&format!("GET {path}"))), body(&served.get("admin.sock", path)), "{path}");
    }
    assert!(body(&ask("GET /config")).contains("/token\"") && !body(&ask("GET /config")).contains(TOKEN));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body(&ask("GET /status"))).unwrap()["generation"], 1);
    assert_eq!(status(&ask("GET /reload")), 405, "an order is POSTed");
    let reloaded = ask("POST /reload");
    assert!(status(&reloaded) == 200 && reloaded.contains("nothing has changed"), "{reloaded}");
    // Commands go on by the socket.
    assert!(served.order(&["status"]).contains("configuration 1"), "{}", served.order(&["status"]));
}

#[test]
fn who_shows_no_token_or_another_is_refused_counted_and_told() {
    let (served, certificate) = start();
    let at = address(&served);
    let ask = |request: &str, fields: &str| ask(at, &certificate, request, fields);

    let silent = ask("GET /metrics", "");
    assert_eq!(
        (status(&silent), header(&silent, "www-authenticate").unwrap().as_str()),
        (401, "Bearer realm=\"vestibule\"")
    );
    let wrong = ask("GET /live", &bearer(OTHER));
    assert_eq!(status(&wrong), 401, "{wrong}");
    assert!(header(&wrong, "www-authenticate").unwrap().ends_with("error=\"invalid_token\""), "{wrong}");
    for (request, fields) in [
        (format!("GET /metrics?access_token={TOKEN}"), String::new()),
        ("GET /metrics".to_owned(), format!("Cookie: token={TOKEN}; access_token={TOKEN}\r\n")),
        ("GET /metrics".to_owned(), format!("Authorization: Basic {TOKEN}\r\n")),
        ("GET /metrics".to_owned(), bearer(TOKEN) + &bearer(TOKEN)),
        ("GET /nothing".to_owned(), String::new()),
        ("POST /drain".to_owned(), String::new()),
        ("POST /reload".to_owned(), bearer(&TOKEN[1..])),
    ] {
        assert_eq!(status(&ask(&request, &fields)), 401, "{request} {fields}");
    }

    let metrics = body(&served.get("admin.sock", "/metrics"));
    assert!(metrics.contains("\nvestibule_admin_refused_total{reason=\"token\"} 9\n"), "{metrics}");
    let events = served.events();
    assert!(events.contains("answered 401") && events.contains("127.0.0.1"), "{events}");
    assert!(!events.contains(OTHER) && !events.contains(&TOKEN[1..]), "{events}");
    assert_eq!(status(&ask("GET /live", &bearer(TOKEN))), 200);
}

#[test]
fn too_many_wrong_tokens_of_one_address_have_it_wait_and_nobody_else() {
    let (served, certificate) = start();
    let at = address(&served);
    let ask = |own: &str, token: &str| ask_from(own, at, &certificate, "GET /live", &bearer(token));

    let until_it_waits = || {
        let mut answers = (0..40).map(|_| ask("127.0.0.1", OTHER));
        let mut wrong = 0;
        let waits = answers.find(|answer| {
            status(answer) != 401 || {
                wrong += 1;
                false
            }
        });
        (wrong, waits.expect("an end of it"))
    };
    let (wrong, waits) = until_it_waits();
    assert!(wrong >= 10 && status(&waits) == 429, "{wrong} {waits}");
    assert!((1..=6).contains(&header(&waits, "retry-after").unwrap().parse::<u64>().unwrap()), "{waits}");

    assert_eq!(status(&ask("127.0.0.1", TOKEN)), 200, "others may be wrong at the same address");
    assert_eq!(status(&ask("127.0.0.2", TOKEN)), 200);
    let metrics = body(&served.get("admin.sock", "/metrics"));
    let counted =
        metrics.lines().find_map(|line| line.strip_prefix("vestibule_admin_refused_total{reason=\"attempts\"} "));
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 1, "{counted:?}");
}

#[test]
fn what_a_web_page_has_a_browser_ask_is_refused_whatever_it_knows() {
    let (served, certificate) = start();
    let at = address(&served);
    let ask = |fields: &str| status(&ask(at, &certificate, "POST /reload", &(bearer(TOKEN) + fields)));

    for fields in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: https://admin.example\r\nSec-Fetch-Site: same-origin\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        assert_eq!(ask(fields), 403, "{fields}");
    }
    assert_eq!((ask("Sec-Fetch-Site: none\r\n"), ask("Sec-Fetch-Site: same-origin\r\n"), ask("")), (200, 200, 200));
    // It is refused before its token is looked at, so that it uses up nobody's tries.
    for _ in 0..12 {
        let refused = self::ask(at, &certificate, "GET /live", &(bearer(OTHER) + "Origin: https://evil.example\r\n"));
        assert_eq!(status(&refused), 403);
    }
    assert_eq!(ask(""), 200);
}

#[test]
fn nothing_is_said_without_tls_and_nothing_but_http1_within() {
    let (served, certificate) = start();
    let at = address(&served);

    let answer = raw(at, format!("GET /live HTTP/1.1\r\nHost: {NAME}\r\n{}\r\n", bearer(TOKEN)));
    assert!(!answer.contains("HTTP/1.1") && !answer.contains("live"), "{answer}");

    let refused = block_on(async {
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client(&[&certificate], &["h2"])));
        connector.connect(NAME.try_into().unwrap(), stream).await.map(drop)
    });
    assert!(refused.unwrap_err().to_string().contains("NoApplicationProtocol"));
}

#[test]
fn silent_connections_of_one_client_are_few_and_do_not_last() {
    let (served, certificate) = start();
    let at = address(&served);
    let mut silent: Vec<TcpStream> = (0..16).map(|_| connect(at)).collect();

    let mut end = [0];
    assert_eq!(connect(at).read(&mut end).unwrap(), 0, "one more is closed at once");
    let other = ask_from("127.0.0.2", at, &certificate, "GET /live", &bearer(TOKEN));
    assert_eq!(status(&other), 200);
    let metrics = body(&served.get("admin.sock", "/metrics"));
    assert!(metrics.contains("\nvestibule_admin_refused_total{reason=\"connections\"} 1\n"), "{metrics}");

    for stream in &mut silent {
        assert_eq!(stream.read(&mut end).unwrap(), 0, "it has had its time");
    }
    assert_eq!(status(&ask(at, &certificate, "GET /live", &bearer(TOKEN))), 200);
}

#[test]
fn a_reload_takes_another_token_certificate_and_address_and_leaves_the_traffic_alone() {
    let (backend, (folder, before)) = (ok(), place());
    let served = Served::start_in(folder, &configuration(&backend, "127.0.0.1:0"), |_| {});
    let (at, worker) = (address(&served), served.worker());
    let mut kept = connect(served.address(0));
    let mut go_on = || {
        kept.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        status(&read_response(&mut kept))
    };
    assert_eq!(go_on(), 200);

    write_token(&served.path("token"), OTHER);
    let said = served.order(&["reload"]);
    assert!(said.contains("in force"), "{said}");
    let asked = |at, believed, token: &str| status(&ask(at, believed, "GET /live", &bearer(token)));
    assert_eq!((asked(at, &before, TOKEN), asked(at, &before, OTHER)), (401, 200));

    let after = certificate(served.folder.path(), "admin", &[NAME]);
    served.order(&["reload"]);
    assert_eq!(asked(at, &after, OTHER), 200);

    // One that is no token is refused, and the one before goes on.
    write_token(&served.path("token"), "short");
    let refused = String::from_utf8(served.run(&["reload"]).stderr).unwrap();
    assert!(refused.contains("admin.token_file: ") && refused.contains("it has 5 characters"), "{refused}");
    assert_eq!(asked(at, &after, OTHER), 200);
    write_token(&served.path("token"), OTHER);

    served.apply(&configuration_of(&served, "127.0.0.2:0"));
    let moved = address(&served);
    assert!(moved.ip() != at.ip(), "{moved}");
    assert_eq!(asked(moved, &after, OTHER), 200);
    wait_for("the address of before to be closed", || TcpStream::connect(at).is_err());

    served.apply(&configuration_of(&served, ""));
    wait_for("the other one to be closed", || TcpStream::connect(moved).is_err());
    assert_eq!((status(&served.get("admin.sock", "/live")), go_on(), served.worker()), (200, 200, worker));
}

/// The configuration that `served` has, with another address; with none, the socket alone.
fn configuration_of(served: &Served, listen: &str) -> String {
    let text = fs::read_to_string(served.path("vestibule.yml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("admin:")).unwrap();
    let dir = served.folder.path().display();
    let admin =
        if listen.is_empty() { format!("admin: unix:{dir}/admin.sock") } else { line.replace("127.0.0.1:0", listen) };
    text.replace(line, &admin)
}

#[test]
fn an_upgrade_hands_the_address_over() {
    let (folder, certificate) = place();
    let served = installed_in(folder, &configuration(&ok(), "127.0.0.1:0"));
    let (at, before) = (address(&served), served.worker());
    install(&served.path("vestibule"));

    let upgraded = ask(at, &certificate, "POST /upgrade", &bearer(TOKEN));

    assert!(status(&upgraded) == 200 && upgraded.contains("upgraded"), "{upgraded}\n{}", served.events());
    wait_for("another worker", || served.worker() != before);
    assert_eq!(status(&ask(at, &certificate, "GET /ready", &bearer(TOKEN))), 200);
    assert_eq!(served.events().matches("the admin endpoint is bound to TCP").count(), 1, "{}", served.events());
    // The program that took over has read nothing anew, and knows the token.
    served::signal("KILL", served.worker());
    wait_for("one more worker", || status(&served.get("admin.sock", "/ready")) == 200);
    assert_eq!(status(&ask(at, &certificate, "GET /ready", &bearer(TOKEN))), 200);
}

#[test]
fn a_key_and_a_token_that_only_root_may_read_are_served_by_a_worker_that_cannot() {
    if !is_root() {
        return;
    }
    let (folder, certificate) = place();
    for file in ["admin.key", "token"] {
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(0o400)).unwrap();
    }
    let served = Served::start_in(folder, &configuration(&ok(), "127.0.0.1:0"), |_| {});

    let answer = ask(address(&served), &certificate, "GET /metrics", &bearer(TOKEN));

    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(served.status()["processes"]["weaknesses"], serde_json::json!([]));
}

#[test]
fn one_process_answers_as_well() {
    let (folder, certificate) = place();
    let served = Served::start_in(folder, &configuration(&ok(), "127.0.0.1:0"), |command| {
        command.arg("--single");
    });

    assert_eq!(status(&ask(address(&served), &certificate, "GET /live", &bearer(TOKEN))), 200);
    assert_eq!(status(&ask(address(&served), &certificate, "GET /live", "")), 401);
}

#[test]
fn files_that_do_not_do_are_refused_with_their_place_and_what_to_do() {
    let (folder, _) = place();
    let text = configuration(&ok(), "127.0.0.1:0");
    served::write(folder.path(), &text);
    let token = folder.path().join("token");
    let told = |verb: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        let output = command.args([verb, "--config"]).arg(folder.path().join("vestibule.yml")).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(told("check"), (Some(0), String::new()));
    let explained = told("explain").1;
    assert!(
        explained.contains("commands and metrics at https://127.0.0.1:0, for whoever has the token in"),
        "{explained}"
    );

    let refused = |expected: &[&str]| {
        for verb in ["check", "serve"] {
            let (code, told) = told(verb);
            assert_eq!(code, Some(78), "{verb}: {told}");
            for expected in expected {
                assert!(told.contains(expected), "{verb}: expected {expected} in {told}");
            }
            assert!(told.contains("vestibule.yml:4:") && !told.contains(TOKEN), "{told}");
        }
    };
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["admin.token_file: ", &format!("`chmod o= {}`", token.display())]);
    write_token(&token, &TOKEN[..31]);
    refused(&["admin.token_file: ", "it has 31 characters", "openssl rand"]);
    write_token(&token, &format!("{TOKEN}\n{TOKEN}"));
    refused(&["admin.token_file: ", "one line"]);
    fs::remove_file(&token).unwrap();
    refused(&["admin.token_file: ", "there is no such file"]);
    write_token(&token, TOKEN);
    certificate(folder.path(), "other", &[NAME]);
    fs::copy(folder.path().join("other.key"), folder.path().join("admin.key")).unwrap();
    refused(&["admin.key: "]);
    fs::remove_file(folder.path().join("admin.key")).unwrap();
    refused(&["admin: cannot read the key", "there is no such file"]);
}

#[test]
fn a_certificate_that_has_expired_is_told_of_and_served() {
    let (folder, _) = place();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([NAME.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    fs::write(folder.path().join("admin.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(folder.path().join("admin.key"), key.serialize_pem()).unwrap();
    let served = Served::start_in(folder, &configuration(&ok(), "127.0.0.1:0"), |_| {});

    assert!(TcpStream::connect(address(&served)).is_ok());
    wait_for("the event", || {
        served
            .events()
            .lines()
            .any(|line| line.contains("a certificate needs attention") && line.contains("admin.certificate"))
    });
    let checked = served.order(&["check"]);
    assert!(checked.starts_with("warning: admin.certificate: the certificate expired at 2021-01-01"), "{checked}");
}
