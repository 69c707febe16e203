//! Certificates that are ordered from a certificate authority, Debian's pebble.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::{
    support::{
        Backend, body,
        clients::{H2, block_on, certificate, client, curl, run, tls_connect},
        directory::{Directory, Failure, RenewalInfo, Resource},
        ok,
        pebble::{Builder, Pebble},
        raw,
        served::{self, Served},
        status, wait_for,
    },
    websockets::Echo,
};

/// Where the site is, for a pebble that is to find it there.
pub(super) struct Ports {
    pub(super) http: u16,
    pub(super) tls: u16,
}

impl Ports {
    pub(super) fn free() -> Self {
        Self { http: free_port(), tls: free_port() }
    }

    pub(super) fn pebble(&self) -> Builder {
        Pebble::builder().http_port(self.http).tls_port(self.tls)
    }

    pub(super) fn tls(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.tls))
    }

    /// A site whose certificate for `hosts` is ordered from `pebble`; `more` are keys of `acme`.
    pub(super) fn site(&self, backend: &Backend, pebble: &Pebble, hosts: &str, more: &str) -> String {
        let (Self { http, tls }, directory, ca) = (self, pebble.directory(), pebble.ca_file().display());
        format!(
            "listeners:\n\
             \x20 - {{ address: '127.0.0.1:{http}', redirect: https, https_port: {tls} }}\n\
             \x20 - {{ address: '127.0.0.1:{tls}', tls: true }}\n\
             host: site.example\n\
             tls:\n\
             \x20 storage: '{{dir}}/storage'\n\
             \x20 certificates: [{{ hosts: [{hosts}], acme: {{ directory: '{directory}', ca_file: '{ca}'{more} }} }}]\n\
             upstreams: {{ app: {{ endpoints: ['{}'] }} }}\n\
             routes: [{{ prefix: /, upstream: app }}]\n",
            backend.address
        )
    }
}

/// A port that is free, and that nobody here is given: it is bound later, by another process, and is none of those that
/// the kernel takes by itself meanwhile.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let first = u16::try_from(std::process::id() % 100).unwrap() * 100;
        let port = 12_000 + (first + number) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// `GET /` by https, of a client that believes `root`.
pub(super) fn https(address: SocketAddr, name: &str, root: &CertificateDer<'static>) -> std::io::Result<String> {
    block_on(async {
        let mut stream = tls_connect(address, name, client(&[root], &["http/1.1"])).await?;
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}

pub(super) fn wait_for_certificate(served: &Served, ports: &Ports, name: &str, pebble: &Pebble) {
    let root = pebble.root_certificate();
    let mut last = None;
    wait_for(&format!("a certificate for {name}"), || {
        let answer = https(ports.tls(), name, &root);
        let came = answer.as_ref().is_ok_and(|answer| status(answer) == 200);
        last = Some(answer);
        came || {
            assert!(!served.events().contains("no certificate could be had"), "{}", served.events());
            false
        }
    });
}

pub(super) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn from_an_empty_folder_the_first_request_is_served_with_a_certificate_of_the_authority() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();

    let served = Served::start(&ports.site(&backend, &pebble, "site.example, www.site.example", ""));

    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for_certificate(&served, &ports, "www.site.example", &pebble);
    wait_for("the state to be told", || served.status()["processes"]["orders"][0]["state"] == "issued");
    assert!(served.order(&["status"]).contains("site.example, www.site.example: ordered, and renewed at "));
    let storage = served.path("storage/acme");
    assert_eq!(mode(&storage), 0o700);
    let kept: Vec<_> = fs::read_dir(storage.join("certificates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(mode(&kept[0].join("bundle.pem")), 0o600);
    assert!(!kept[0].join("pending-key.pem").exists());
}

#[test]
fn nothing_but_the_storage_holds_a_private_key() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let served = Served::start_with(&configuration, |command| {
        command.env("VESTIBULE_LOG", "trace");
    });
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the state to be told", || order_of(&served, 0)["state"] == "issued");

    let bundle = fs::read_to_string(find_record(&served).with_file_name("bundle.pem")).unwrap();
    let key = bundle.lines().nth(1).unwrap();
    assert!(bundle.starts_with("-----BEGIN PRIVATE KEY-----") && key.len() == 64, "{key}");
    let mut said = served.events();
    for path in ["/status", "/config", "/metrics"] {
        said += &body(&served.get("admin.sock", path));
    }
    assert!(!said.contains(key) && !said.contains("PRIVATE KEY"), "{said}");
    let processes = [vec![served.pid()], served::children(served.pid())].concat();
    assert_eq!(processes.len(), 3, "the keeper, the worker and the agent");
    for process in processes {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(5), Some("0"), "{core}");
    }
}

#[test]
fn each_challenge_is_answered() {
    for (hosts, name, more) in [
        ("site.example", "site.example", ", challenge: http-01"),
        ("site.example", "site.example", ", challenge: tls-alpn-01"),
        ("127.0.0.1", "127.0.0.1", ", challenge: tls-alpn-01"),
        ("127.0.0.1", "127.0.0.1", ""),
    ] {
        let ports = Ports::free();
        let Some(pebble) = ports.pebble().nonce_reject(20).start() else { return };
        let backend = ok();
        let served = Served::start(&ports.site(&backend, &pebble, hosts, more));
        wait_for_certificate(&served, &ports, name, &pebble);
    }
}

#[test]
fn it_is_renewed_in_time_whatever_the_authority_remembers_of_us() {
    // All authorizations are made use of again, or none.
    for reused in [0, 100] {
        let ports = Ports::free();
        // So short that a third of it is over in a moment, and renewed again and again.
        let pebble = ports.pebble().validity(Duration::from_secs(9)).authz_reuse(reused);
        let Some(pebble) = pebble.start() else { return };
        let backend = ok();
        let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));
        wait_for_certificate(&served, &ports, "site.example", &pebble);

        let root = pebble.root_certificate();
        let issued = || served.events().matches("certificate issued").count();
        for renewals in 1..=2 {
            wait_for("a renewal", || {
                let answer = https(ports.tls(), "site.example", &root).unwrap();
                assert_eq!(status(&answer), 200, "{answer}");
                issued() > renewals
            });
        }
    }
}

#[test]
fn one_process_orders_as_well() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let served = Served::start_with(&configuration, |command| {
        command.arg("--single");
    });
    wait_for_certificate(&served, &ports, "site.example", &pebble);
}

#[test]
fn one_that_was_replaced_already_is_ordered_as_another_one() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().validity(Duration::from_secs(9)).start() else { return };
    let backend = ok();
    let directory = Directory::before(&pebble);
    directory.fail(Resource::Replacement, Failure::already_replaced());
    let configuration =
        ports.site(&backend, &pebble, "site.example", "").replace(&pebble.directory(), &directory.url());

    let served = Served::start(&configuration);

    wait_for("a renewal", || served.events().matches("certificate issued").count() == 2);
    let orders: Vec<_> = directory.orders().into_iter().map(|order| (order.replaces.is_some(), order.status)).collect();
    assert_eq!(orders[..3], [(false, Some(201)), (true, Some(409)), (false, Some(201))]);
    assert!(!served.events().contains("no certificate could be had"), "{}", served.events());
}

#[test]
fn renewals_under_load_lose_no_request_and_no_websocket() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().validity(Duration::from_secs(9)).start() else { return };
    let (backend, echo) = (ok(), Echo::start());
    let configuration = ports.site(&backend, &pebble, "site.example", "").replace(
        "routes: [",
        &format!(
            "  echo: {{ endpoints: ['{}'] }}\nroutes: [{{ prefix: /ws/, upstream: echo }}, ",
            echo.backend.address
        ),
    );
    let served = Served::start(
        &configuration.replace("upstreams: { app: ", "upstreams:\n  app: ").replace("'] } }\n", "'] }\n"),
    );
    wait_for_certificate(&served, &ports, "site.example", &pebble);

    let load = Load::begin(ports.tls(), "site.example", &pebble.root_certificate());
    let issued = || served.events().matches("certificate issued").count();
    for renewals in issued()..issued() + 3 {
        wait_for("a renewal", || issued() > renewals);
    }

    let requests = load.end();
    assert!(requests > 500, "{requests}");
}

/// Clients that ask and send without a pause, and panic at the first loss.
struct Load {
    ended: Arc<AtomicBool>,
    /// How often each of them did.
    clients: Vec<thread::JoinHandle<usize>>,
}

impl Load {
    fn begin(address: SocketAddr, name: &'static str, root: &CertificateDer<'static>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let client = |ask: fn(SocketAddr, &'static str, &CertificateDer<'static>, &mut dyn FnMut() -> bool)| {
            let (ended, root) = (Arc::clone(&ended), root.clone());
            thread::spawn(move || {
                let mut requests = 0;
                ask(address, name, &root, &mut || {
                    requests += 1;
                    !ended.load(Ordering::Relaxed)
                });
                requests
            })
        };
        let clients = [new_connections, new_connections, one_connection, one_connection, one_websocket, one_websocket];
        Self { clients: clients.map(client).into(), ended }
    }

    fn end(self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("nothing was lost")).sum()
    }
}

fn new_connections(
    address: SocketAddr,
    name: &'static str,
    root: &CertificateDer<'static>,
    goes_on: &mut dyn FnMut() -> bool,
) {
    while goes_on() {
        assert_eq!(status(&https(address, name, root).unwrap()), 200);
    }
}

fn one_connection(
    address: SocketAddr,
    name: &'static str,
    root: &CertificateDer<'static>,
    goes_on: &mut dyn FnMut() -> bool,
) {
    runtime().block_on(async {
        let mut connection = H2::connect(address, name, root).await;
        while goes_on() {
            assert_eq!(connection.get("/").await.status(), 200);
        }
    });
}

fn one_websocket(
    address: SocketAddr,
    name: &'static str,
    root: &CertificateDer<'static>,
    goes_on: &mut dyn FnMut() -> bool,
) {
    runtime().block_on(async {
        let stream = tls_connect(address, name, client(&[root], &["http/1.1"])).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(format!("wss://{name}/ws/"), stream).await.unwrap();
        while goes_on() {
            socket.send(Message::text("echo")).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("echo"));
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// `vestibule certificates …`.
pub(super) fn certificates(served: &Served, verb: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let output = run(command.args(["certificates", verb, "--config"]).arg(served.path("vestibule.yml")));
    assert!(output.status.success(), "{output:?}\n{}", served.events());
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn order_of(served: &Served, number: usize) -> Value {
    served.status()["processes"]["orders"][number].clone()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the moment of the kill is what is varied; nothing is waited for")]
fn a_kill_at_any_moment_of_an_order_leaves_what_the_next_start_completes() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let mut folder = served::folder();
    // An order takes about half a second here.
    for moment in (0..900).step_by(60) {
        let served = Served::start_in(folder, &configuration, |_| {});
        thread::sleep(Duration::from_millis(moment));
        let root = served.pid();
        let mut processes = served::children(root);
        processes.push(root);
        for pid in processes {
            served::signal("KILL", pid);
        }
        folder = served.into_folder();
        wait_for("the ports", || {
            [ports.http, ports.tls].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        });
    }

    let served = Served::start_in(folder, &configuration, |_| {});

    wait_for_certificate(&served, &ports, "site.example", &pebble);
    // One order that was taken up again and again, or two or three where one was cut off before it was remembered.
    let issued = pebble.log().matches("Issued certificate").count();
    assert!((1..=3).contains(&issued), "{issued} certificates were issued\n{}", pebble.log());
    let folder = served.path("storage/acme/certificates");
    let kept: Vec<_> =
        fs::read_dir(folder).unwrap().flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap()).collect();
    let names: Vec<_> = kept.into_iter().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.contains(&"bundle.pem".to_owned()), "{names:?}");
}

#[test]
fn an_authority_that_is_down_changes_nothing_for_users() {
    let ports = Ports::free();
    let Some(mut pebble) = ports.pebble().validity(Duration::from_secs(3600)).start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    pebble.stop();

    // Without a certificate: a self-signed one is served, and what is wrong is told everywhere.
    let served = Served::start(&configuration);
    wait_for("the failure to be told", || order_of(&served, 0)["state"] == "failing");
    let (url, at) = (format!("https://site.example:{}/", ports.tls), format!("site.example:{}:127.0.0.1", ports.tls));
    let answer = curl(&["--insecure", "--resolve", &at, &url]);
    assert!(answer.as_ref().is_none_or(|answer| answer.starts_with("ok")), "a self-signed one is served: {answer:?}");
    let listed = certificates(&served, "list");
    assert!(listed.contains("site.example: 1 attempt FAILED, the next one is at "), "{listed}");
    assert!(listed.contains(&pebble.directory()) && listed.contains("refused"), "{listed}");
    let metrics = body(&served.get("admin.sock", "/metrics"));
    assert!(
        metrics.contains(
            "vestibule_certificate_order_failures{certificate=\"tls.certificates[0]\",name=\"site.example\"} 1"
        ),
        "{metrics}"
    );

    // It is not asked again before its time, which is remembered across restarts.
    let folder = served.into_folder();
    let served = Served::start_in(folder, &configuration, |_| {});
    wait_for("the state to be told", || order_of(&served, 0)["state"] == "failing");
    assert_eq!(order_of(&served, 0)["failures"], 1);

    // Back again, and asked by hand: the certificate is there; with another outage it stays.
    pebble.start_again();
    certificates(&served, "renew");
    wait_for("a certificate", || order_of(&served, 0)["state"] == "issued");
    let root = pebble.root_certificate();
    assert_eq!(status(&https(ports.tls(), "site.example", &root).unwrap()), 200);
    let metrics = body(&served.get("admin.sock", "/metrics"));
    assert!(
        metrics.contains(
            "vestibule_certificate_expires_seconds{certificate=\"tls.certificates[0]\",name=\"site.example\"} 3"
        ),
        "{metrics}"
    );
    let account = |served: &Served| {
        let folder = fs::read_dir(served.path("storage/acme/accounts")).unwrap().next().unwrap().unwrap().path();
        fs::read(folder.join("account.json")).unwrap()
    };
    let (key, issued) = (account(&served), served.events().matches("certificate issued").count());
    certificates(&served, "renew");
    wait_for("another certificate", || served.events().matches("certificate issued").count() > issued);
    assert_ne!(
        account(&served),
        key,
        "who orders anew by hand wants new keys, and the account goes on\n{}",
        served.events()
    );
    pebble.stop();
    certificates(&served, "renew");
    wait_for("the failure to be told", || order_of(&served, 0)["state"] == "failing");
    assert_eq!(status(&https(ports.tls(), "site.example", &root).unwrap()), 200);
}

#[test]
fn what_the_authority_says_of_a_name_is_told() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    pebble.set_servfail("site.example");

    let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));

    wait_for("the failure to be told", || order_of(&served, 0)["state"] == "failing");
    let why = order_of(&served, 0)["why"].as_str().unwrap().to_owned();
    assert!(why.contains("site.example: ") && why.contains("could not resolve"), "{why}");
    // Nothing of it is answered any more.
    let page =
        raw(SocketAddr::from(([127, 0, 0, 1], ports.http)), "GET /.well-known/acme-challenge/x HTTP/1.0\r\n\r\n");
    assert_eq!(status(&page), 301, "{page}");
}

#[test]
fn what_is_in_the_way_is_said_before_the_authority_is_asked() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));
    wait_for_certificate(&served, &ports, "site.example", &pebble);

    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let output = run(command.args(["certificates", "check", "--config"]).arg(served.path("vestibule.yml")));

    // `.example` is nobody's (RFC 2606), whatever name server this machine has, and whether it has one.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("site.example"), "{said}");
    // What was answered for the check is answered no more, and the certificate is as it was.
    assert_eq!(order_of(&served, 0)["state"], "issued");
}

#[test]
fn the_second_authority_is_asked_while_the_first_one_fails() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let broken = Directory::before(&pebble);
    broken.fail(Resource::NewOrder, Failure::rate_limited(Duration::from_secs(3600)));
    let configuration = ports
        .site(&backend, &pebble, "site.example", &format!(", fallback: '{}'", pebble.directory()))
        .replacen(&format!("directory: '{}'", pebble.directory()), &format!("directory: '{}'", broken.url()), 1);

    let served = Served::start(&configuration);

    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the state to be told", || order_of(&served, 0)["issued_by"] == pebble.directory());
}

#[test]
fn an_authority_that_asks_for_its_customers_number_is_given_it() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().eab("kid-1", key).start() else { return };
    let backend = ok();
    let more = format!(", email: a@site.example, eab: {{ key_id: kid-1, key: {key} }}");

    let served = Served::start(&ports.site(&backend, &pebble, "site.example", &more));

    wait_for_certificate(&served, &ports, "site.example", &pebble);
    assert!(!body(&served.get("admin.sock", "/config")).contains(key));
    assert!(!served.events().contains(key));
}

#[test]
fn another_host_is_another_order_and_the_way_back_is_none() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let site =
        |host: &str| ports.site(&backend, &pebble, host, "").replace("host: site.example", &format!("host: {host}"));
    let served = Served::start(&site("old.example"));
    wait_for_certificate(&served, &ports, "old.example", &pebble);

    served.apply(&site("new.example"));
    wait_for_certificate(&served, &ports, "new.example", &pebble);
    let issued = pebble.log().matches("Issued certificate").count();
    served.apply(&site("old.example"));

    wait_for_certificate(&served, &ports, "old.example", &pebble);
    assert_eq!(pebble.log().matches("Issued certificate").count(), issued, "it was kept");
}

#[test]
fn a_name_more_that_is_not_proved_costs_the_others_nothing() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    pebble.names.set_address("www.site.example", "127.0.0.9");

    served.apply(&ports.site(&backend, &pebble, "site.example, www.site.example", ""));
    wait_for("the refusal", || order_of(&served, 0)["state"] == "failing");

    let root = pebble.root_certificate();
    assert_eq!(status(&https(ports.tls(), "site.example", &root).unwrap()), 200, "{}", served.events());
    // Nor does a damaged file of the new one, or a start from nothing but what is kept.
    let served = Served::start_in(
        served.into_folder(),
        &ports.site(&backend, &pebble, "site.example, www.site.example", ""),
        |_| {},
    );
    assert_eq!(status(&https(ports.tls(), "site.example", &root).unwrap()), 200, "{}", served.events());
}

#[test]
fn the_authority_says_when_to_renew_and_what_kind_it_is_of() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let directory = Directory::before(&pebble);
    directory.set_profiles(&[("shortlived", "six days")]);
    let far = SystemTime::now() + Duration::from_secs(30 * 86_400);
    let window = |start, explanation: Option<&str>| RenewalInfo {
        start,
        end: start + Duration::from_secs(3600),
        explanation: explanation.map(str::to_owned),
        retry_after: Some(Duration::from_secs(60)),
    };
    directory.set_renewal(None, window(far, None));
    let configuration = ports
        .site(&backend, &pebble, "site.example", ", profile: shortlived")
        .replace(&pebble.directory(), &directory.url());
    let served = Served::start(&configuration);
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the state to be told", || order_of(&served, 0)["state"] == "issued");

    let next: jiff::Timestamp = order_of(&served, 0)["next"].as_str().unwrap().parse().unwrap();
    let far = jiff::Timestamp::try_from(far).unwrap();
    assert!(
        (far.as_second()..=far.as_second() + 3600).contains(&next.as_second()),
        "{next} is not in the window of {far}"
    );
    assert_eq!(directory.orders()[0].profile.as_deref(), Some("shortlived"));
    assert_eq!(directory.orders()[0].replaces, None);

    // An incident: the window has begun. What was asked for a minute ago is asked for again at the next start.
    let explanation = "https://ca.example/incident";
    directory.set_renewal(None, window(SystemTime::now() - Duration::from_secs(7200), Some(explanation)));
    let record = find_record(&served);
    let folder = served.into_folder();
    let text = fs::read_to_string(&record).unwrap();
    let mut advice: Value = serde_json::from_str(&text).unwrap();
    advice["advice"]["ask_again"] = "2020-01-01T00:00:00Z".into();
    fs::write(&record, advice.to_string()).unwrap();
    let served = Served::start_in(folder, &configuration, |_| {});

    wait_for("an order in its place", || directory.orders().len() >= 2);
    assert!(directory.orders()[1].replaces.is_some(), "it says what it replaces");
    assert!(served.events().contains(explanation), "{}", served.events());
}

fn find_record(served: &Served) -> PathBuf {
    let folder = fs::read_dir(served.path("storage/acme/certificates")).unwrap().next().unwrap().unwrap().path();
    folder.join("record.json")
}

#[test]
fn a_worker_that_dies_an_upgrade_and_an_agent_that_dies_change_nothing() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().validity(Duration::from_secs(12)).start() else { return };
    let backend = ok();
    let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    let issued = || served.events().matches("certificate issued").count();
    let root = pebble.root_certificate();
    let renewed = |what: &str| {
        let before = issued();
        wait_for(&format!("a renewal after {what}"), || {
            assert_eq!(status(&https(ports.tls(), "site.example", &root).unwrap()), 200, "{what}");
            issued() > before
        });
    };

    let worker = served.worker();
    served::signal("KILL", worker);
    wait_for("another worker", || served.status()["processes"]["crashes"] == 1);
    renewed("the end of a worker");

    for agent in served::children(served.pid()).into_iter().filter(|pid| *pid != served.worker()) {
        served::signal("KILL", agent);
    }
    renewed("the end of the agent");

    served.order(&["upgrade"]);
    renewed("an upgrade");
    wait_for("the state", || served.status()["processes"]["orders"][0]["state"] == "issued");
}

#[test]
fn what_comes_while_another_configuration_is_put_in_force_is_served_under_that_one() {
    let ports = Ports::free();
    // No challenge has to be answered by a worker that stands still.
    let Some(pebble) = ports.pebble().validity(Duration::from_secs(9)).authz_reuse(100).start() else { return };
    let backend = ok();
    let served = Served::start(&ports.site(&backend, &pebble, "site.example", ""));
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the state to be told", || order_of(&served, 0)["state"] == "issued");
    let issued = || served.events().matches("certificate issued").count();
    let before = issued();

    let worker = served.worker();
    served::signal("STOP", worker);
    // With a second certificate.
    let other = certificate(served.folder.path(), "other", &["other.example"]);
    let more = "certificates: [{ files: { certificate: '{dir}/other.crt', key: '{dir}/other.key' } }, ";
    served.rewrite(&ports.site(&backend, &pebble, "site.example", "").replace("certificates: [", more));
    wait_for("a renewal meanwhile", || issued() > before);
    served::signal("CONT", worker);

    wait_for("the configuration", || served.events().contains("configuration in force"));
    let root = pebble.root_certificate();
    let shown = || shown(&ports, "site.example", &root);
    wait_for("the certificate that came", || shown() == kept(&served));
    assert_eq!(status(&https(ports.tls(), "other.example", &other).unwrap()), 200, "{}", served.events());
    // What another worker is handed is the same.
    served::signal("KILL", worker);
    wait_for("another worker", || served.status()["processes"]["crashes"] == 1);
    assert_eq!(shown(), kept(&served), "{}", served.events());
}

#[test]
fn a_storage_that_moves_is_where_certificates_are_kept_from_then_on() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let served = Served::start(&configuration);
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    let issued = pebble.log().matches("Issued certificate").count();

    served.apply(&configuration.replace("{dir}/storage", "{dir}/moved"));

    wait_for("another certificate", || pebble.log().matches("Issued certificate").count() > issued);
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    assert_eq!(fs::read_dir(served.path("moved/acme/certificates")).unwrap().count(), 1);
    let agents = || served::children(served.pid()).len();
    wait_for("the agent of before to be gone", || agents() == 2);
}

#[test]
fn where_nothing_is_ordered_any_more_nobody_orders_and_nothing_is_left_of_who_did() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let served = Served::start(&configuration);
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    assert_eq!(served::children(served.pid()).len(), 2, "a worker and an agent");

    let ordered = configuration.lines().find(|line| line.contains("certificates:")).unwrap();
    served.apply(&configuration.replace(ordered, ""));

    wait_for("the end of the agent", || served::children(served.pid()) == [served.worker()]);
    assert!(served.status()["processes"]["orders"].as_array().is_none_or(Vec::is_empty));
}

#[test]
fn many_certificates_that_cannot_be_had_are_told_of_each() {
    let ports = Ports::free();
    let Some(mut pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let directory = pebble.directory();
    let configuration = ports.site(&backend, &pebble, "site.example", "");
    let one = configuration.lines().find(|line| line.contains("certificates:")).unwrap();
    let entry = one.split_once('[').unwrap().1.trim_end_matches(']');
    let entries: Vec<_> = (0..150).map(|number| entry.replace("site.example", &format!("s{number}.example"))).collect();
    pebble.stop();

    let served = Served::start(&configuration.replace(entry, &entries.join(", ")));

    // Texts of far more than a packet of the link.
    wait_for("all failures to be told", || {
        let status = served.status();
        let orders = status["processes"]["orders"].as_array().cloned().unwrap_or_default();
        let failing =
            |order: &&Value| order["state"] == "failing" && order["why"].as_str().unwrap().contains(&directory);
        orders.iter().filter(failing).count() == 150
            && (0..).zip(&orders).all(|(number, order)| order["hosts"][0] == format!("s{number}.example"))
    });
    assert!(!served.events().contains("the agent that orders certificates has ended"), "{}", served.events());
}

/// The certificate of `name` that is shown to a client which believes `root`.
fn shown(ports: &Ports, name: &str, root: &CertificateDer<'static>) -> CertificateDer<'static> {
    let stream = block_on(tls_connect(ports.tls(), name, client(&[root], &["http/1.1"]))).unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// What is kept in the storage of the only one that is ordered.
fn kept(served: &Served) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&fs::read(find_record(served).with_file_name("bundle.pem")).unwrap()).unwrap()
}
