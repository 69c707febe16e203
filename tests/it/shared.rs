//! Several machines with one storage: real processes, moto as S3, Azurite as Azure, and Debian's pebble.

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rustls::HandshakeKind;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vestibule::{
    config::SharedStoragePlan,
    tls::{
        Roots, SecretBytes,
        storage::{Access, Storage, Version},
    },
};

use super::support::{
    Backend,
    azurite::Azurite,
    clients::{block_on, client, run, tls_connect},
    moto::Moto,
    ok, patiently,
    pebble::{Pebble, free_ports},
    served::{self, Served},
    status, wait_for,
};

const SECRET: &str = "a secret of forty characters, as is fit.";

fn storage(plan: &SharedStoragePlan) -> Storage {
    let access = Access::read(plan, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
    Storage::shared(&access, &Roots::of_the_system()).unwrap()
}

fn bytes(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

/// Many rounds in which several clients write at once.
async fn each_race_has_one_winner(plan: &SharedStoragePlan) {
    let writers: Vec<_> = (0..6).map(|_| storage(plan)).collect();
    for round in 0..10 {
        let key = format!("race/{round}");
        let creations = writers.iter().enumerate().map(|(writer, storage)| {
            let (key, content) = (key.clone(), bytes(&format!("{writer}")));
            async move { storage.create(&key, content).await.unwrap() }
        });
        let created: Vec<Option<Version>> = join_all(creations).await;
        let winners: Vec<_> = (0..).zip(&created).filter(|(_, version)| version.is_some()).collect();
        let [(winner, Some(version))] = winners[..] else { panic!("round {round}: {created:?}") };
        let (there, seen) = writers[0].look(&key).await.unwrap().unwrap();
        assert_eq!((there.expose(), &seen), (winner.to_string().as_bytes(), version));

        let mut version = version.clone();
        for turn in 0..3 {
            let changes = writers.iter().enumerate().map(|(writer, storage)| {
                let (key, content, version) = (key.clone(), bytes(&format!("{turn} {writer}")), version.clone());
                async move { storage.replace(&key, content, &version).await.unwrap() }
            });
            let won: Vec<_> = join_all(changes).await.into_iter().flatten().collect();
            let [next] = &won[..] else { panic!("round {round}, turn {turn}: {won:?}") };
            version = next.clone();
        }
        assert_eq!(writers[1].look(&key).await.unwrap().unwrap().1, version);
    }
    let storage = &writers[0];
    let mut keys = storage.list("race").await.unwrap();
    keys.sort_unstable();
    assert_eq!(keys, (0..10).map(|round| format!("race/{round}")).collect::<Vec<_>>());
    for key in &keys {
        let (_, version) = storage.look(key).await.unwrap().unwrap();
        storage.remove(key).await.unwrap();
        storage.remove(key).await.unwrap();
        assert!(storage.replace(key, bytes("late"), &version).await.unwrap().is_none(), "what is gone is not replaced");
    }
    assert_eq!(storage.list("race").await.unwrap(), [""; 0]);
}

#[test]
fn a_conditional_write_has_one_winner_at_s3() {
    let folder = served::folder();
    let Some(moto) = Moto::start(folder.path()) else { return };
    block_on(each_race_has_one_winner(&moto.plan(folder.path(), SECRET)));
}

#[test]
fn a_conditional_write_has_one_winner_at_azure() {
    let folder = served::folder();
    let Some(azurite) = Azurite::start(folder.path()) else { return };
    block_on(each_race_has_one_winner(&azurite.plan(folder.path(), SECRET)));
}

#[test]
fn what_is_stored_is_opened_with_its_secret_only() {
    let folder = served::folder();
    let Some(moto) = Moto::start(folder.path()) else { return };
    let ours = storage(&moto.plan(folder.path(), SECRET));
    block_on(ours.write("acme/key.pem", bytes("PRIVATE KEY"))).unwrap();

    let stored = moto.object("acme/key.pem");
    assert!(status(&stored) == 200 && !stored.contains("PRIVATE"), "{stored}");
    // An editor's last line end is none of the secret's.
    let same = storage(&moto.plan(folder.path(), &format!("{SECRET}\n")));
    assert_eq!(block_on(same.read("acme/key.pem")).unwrap().unwrap().expose(), b"PRIVATE KEY");
    let others = storage(&moto.plan(folder.path(), "another secret of forty characters or so"));
    assert_eq!(
        block_on(others.read("acme/key.pem")).unwrap_err().to_string(),
        "acme/key.pem: it cannot be opened: it was sealed with another secret than the one in \
         `tls.storage_options.secret_file`, or has been changed"
    );
}

/// A machine of the site.
struct Node {
    served: Served,
    place: Place,
}

/// Where it is found, and by which processes.
#[derive(Clone)]
struct Place {
    http: SocketAddr,
    tls: SocketAddr,
    pids: Vec<u32>,
}

impl Node {
    fn start(folder: tempfile::TempDir, configuration: &str) -> Self {
        let served = Served::start_in(folder, configuration, |_| {});
        let place = |served: &Served| Place {
            http: served.address(0),
            tls: served.address(1),
            pids: [served.pid()].into_iter().chain(served::children(served.pid())).collect(),
        };
        wait_for("an agent", || place(&served).pids.len() == 3);
        let place = place(&served);
        Self { served, place }
    }

    fn order(&self) -> Value {
        self.served.status()["processes"]["orders"][0].clone()
    }
}

impl Place {
    /// Ends it where it stands.
    fn kill(&self) {
        // The keeper first, which would begin another agent.
        for pid in &self.pids {
            served::signal("KILL", *pid);
        }
    }

    /// The certificate that is served there, if that is one of the authority's.
    fn certificate(&self, root: &CertificateDer<'static>) -> Option<CertificateDer<'static>> {
        let stream = block_on(tls_connect(self.tls, "site.example", client(&[root], &["http/1.1"]))).ok()?;
        Some(stream.get_ref().1.peer_certificates()?[0].clone().into_owned())
    }
}

/// Several machines behind one address, to which the authority comes.
struct Site {
    pebble: Pebble,
    backend: Backend,
    places: Arc<Mutex<Vec<Place>>>,
    _balancer: [Backend; 2],
}

impl Site {
    /// Each connection goes to the machine that `choose` names, or is closed.
    fn behind(choose: impl Fn(&[Place]) -> Option<usize> + Send + Sync + 'static) -> Option<Self> {
        let ports: [u16; 2] = free_ports();
        let pebble = Pebble::builder().http_port(ports[0]).tls_port(ports[1]).start()?;
        let places = Arc::<Mutex<Vec<Place>>>::default();
        let choose = Arc::new(choose);
        let balancer = [0, 1].map(|kind| {
            let (choose, places) = (Arc::clone(&choose), Arc::clone(&places));
            Backend::start_at(&format!("127.0.0.1:{}", ports[kind]), move |client| {
                let places = places.lock().unwrap().clone();
                let chosen = choose(&places).map(|chosen| [places[chosen].http, places[chosen].tls][kind]);
                if let Some(server) = chosen.and_then(|address| TcpStream::connect(address).ok()) {
                    relay(client, server);
                }
            })
        });
        Some(Self { pebble, backend: ok(), places, _balancer: balancer })
    }

    /// A machine with the storage `keys`; `more` are keys of `acme`.
    fn node(&self, keys: &str, more: &str) -> Node {
        self.node_in(served::folder(), keys, more)
    }

    fn node_in(&self, folder: tempfile::TempDir, keys: &str, more: &str) -> Node {
        let (directory, ca) = (self.pebble.directory(), self.pebble.ca_file().display());
        let node = Node::start(
            folder,
            &format!(
                "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}]\n\
                 tls: {{ {keys}, certificates: [{{ hosts: [site.example], acme: {{ directory: '{directory}', ca_file: '{ca}'{more} \
                 }} }}] }}\n\
                 upstreams: {{ app: {{ endpoints: ['{}'] }} }}\nroutes: [{{ prefix: /, upstream: app }}]\n",
                self.backend.address
            ),
        );
        self.places.lock().unwrap().push(node.place.clone());
        node
    }

    /// Waits until `nodes` serve one certificate of the authority that is not `before`.
    fn one_certificate(&self, nodes: &[&Node], before: Option<&CertificateDer<'static>>) -> CertificateDer<'static> {
        let root = self.pebble.root_certificate();
        let begun = Instant::now();
        loop {
            let served: Vec<_> = nodes.iter().map(|node| node.place.certificate(&root)).collect();
            if let Some(first) = &served[0]
                && Some(first) != before
                && served.iter().all(|one| one.as_ref() == Some(first))
            {
                return first.clone();
            }
            if begun.elapsed() > Duration::from_secs(90) {
                let events: Vec<_> = nodes.iter().map(|node| node.served.events()).collect();
                panic!("there is no one certificate\n{}\n{}", events.join("\n---\n"), self.pebble.log());
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn issued(&self) -> usize {
        self.pebble.log().matches("Issued certificate").count()
    }

    fn accounts(&self) -> usize {
        self.pebble.log().matches("accounts in memory").count()
    }
}

fn relay(client: TcpStream, server: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        move || {
            drop(io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Write));
        }
    };
    let mut back = copy(server.try_clone().unwrap(), client.try_clone().unwrap());
    let there = thread::spawn(copy(client, server));
    back();
    drop(there.join());
}

/// As a balancer does that knows nothing of orders.
fn in_turn() -> impl Fn(&[Place]) -> Option<usize> + Send + Sync {
    let next = AtomicUsize::new(0);
    move |places| Some(next.fetch_add(1, Ordering::Relaxed) % places.len())
}

/// Who of `places` orders at present.
fn holder(storage: &Storage, places: &[Place]) -> Option<usize> {
    let lease = async {
        let keys = storage.list("acme/certificates").await.ok()?;
        storage.read(keys.iter().find(|key| key.ends_with("/lease.json"))?).await.ok()?
    };
    let lease: Value = serde_json::from_slice(block_on(lease)?.expose()).unwrap();
    let pid: u32 = lease["holder"].as_str()?.rsplit(' ').next()?.parse().ok()?;
    places.iter().position(|place| place.pids.contains(&pid))
}

#[test]
fn three_machines_at_s3_order_once_and_serve_one_certificate() {
    let folder = served::folder();
    let (Some(moto), Some(site)) = (Moto::start(folder.path()), Site::behind(in_turn())) else { return };
    let keys = moto.keys(folder.path(), SECRET);
    let nodes = [(); 3].map(|()| site.node(&keys, ""));
    let [a, b, c] = &nodes;

    let first = site.one_certificate(&[a, b, c], None);

    assert_eq!((site.issued(), site.accounts()), (1, 1), "{}", site.pebble.log());
    for node in &nodes {
        patiently("the state to be told", || node.order()["state"] == "issued");
    }
    // Ordered anew by hand at one of them, it is everywhere again.
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    let renewal = run(command.args(["certificates", "renew", "--config"]).arg(b.served.path("vestibule.yml")));
    assert!(renewal.status.success(), "{renewal:?}");
    site.one_certificate(&[b, a, c], Some(&first));
    assert_eq!((site.issued(), site.accounts()), (2, 1), "{}", site.pebble.log());
}

#[test]
fn a_session_that_one_machine_began_is_resumed_by_another() {
    let folder = served::folder();
    let (Some(moto), Some(site)) = (Moto::start(folder.path()), Site::behind(in_turn())) else { return };
    let keys =
        moto.keys(folder.path(), SECRET).replace("storage_options: {", "storage_options: { share_tickets: true,");
    let (a, b) = (site.node(&keys, ""), site.node(&keys, ""));
    site.one_certificate(&[&a, &b], None);
    let config = Arc::new(client(&[&site.pebble.root_certificate()], &["http/1.1"]));
    let handshake = |node: &Node| {
        block_on(async {
            let mut stream = tls_connect(node.place.tls, "site.example", Arc::clone(&config)).await.unwrap();
            let kind = stream.get_ref().1.handshake_kind();
            // The ticket comes with what is read.
            stream.write_all(b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n").await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            kind
        })
    };

    assert_eq!(handshake(&a), Some(HandshakeKind::Full));
    assert_eq!(handshake(&b), Some(HandshakeKind::Resumed));
}

#[test]
fn two_machines_at_azure_order_once_and_serve_one_certificate() {
    let folder = served::folder();
    let (Some(azurite), Some(site)) = (Azurite::start(folder.path()), Site::behind(in_turn())) else { return };
    let keys = azurite.keys(folder.path(), SECRET);
    let (a, b) = (site.node(&keys, ""), site.node(&keys, ""));

    site.one_certificate(&[&a, &b], None);

    assert_eq!((site.issued(), site.accounts()), (1, 1), "{}", site.pebble.log());
}

#[test]
fn a_challenge_is_answered_by_the_machine_that_did_not_ask_for_it() {
    for challenge in ["http-01", "tls-alpn-01"] {
        let folder = served::folder();
        let Some(moto) = Moto::start(folder.path()) else { return };
        let (keys, storage) = (moto.keys(folder.path(), SECRET), storage(&moto.plan(folder.path(), SECRET)));
        let by_others = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&by_others);
        let others = move |places: &[Place]| {
            let holder = holder(&storage, places)?;
            count.fetch_add(1, Ordering::Relaxed);
            Some(1 - holder)
        };
        let Some(site) = Site::behind(others) else { return };
        let more = format!(", challenge: {challenge}");
        // Both are there before one of them orders.
        let a = site.node(&keys, &more);
        let b = site.node(&keys, &more);

        site.one_certificate(&[&a, &b], None);

        assert!(by_others.load(Ordering::Relaxed) >= 1, "{challenge}");
        assert_eq!(site.accounts(), 1, "{}", site.pebble.log());
    }
}

#[test]
fn another_machine_goes_on_where_one_was_killed_in_an_order() {
    let folder = served::folder();
    let Some(moto) = Moto::start(folder.path()) else { return };
    let (keys, storage) = (moto.keys(folder.path(), SECRET), storage(&moto.plan(folder.path(), SECRET)));
    let killed = Arc::new(Mutex::new(None));
    let note = Arc::clone(&killed);
    let kill_the_first = move |places: &[Place]| {
        let holder = holder(&storage, places)?;
        let mut killed = note.lock().unwrap();
        if killed.is_none() {
            *killed = Some(holder);
            places[holder].kill();
        }
        (*killed != Some(holder)).then_some(holder)
    };
    let Some(site) = Site::behind(kill_the_first) else { return };
    let nodes = [site.node(&keys, ""), site.node(&keys, "")];

    patiently("the first to be killed", || killed.lock().unwrap().is_some());
    let survivor = &nodes[1 - killed.lock().unwrap().unwrap()];

    site.one_certificate(&[survivor], None);
    assert!(survivor.served.events().contains("has been silent"), "{}", survivor.served.events());
    assert_eq!((site.issued(), site.accounts()), (1, 1), "{}", site.pebble.log());
}

#[test]
fn without_its_storage_a_machine_starts_with_the_certificate_that_it_had() {
    let folder = served::folder();
    let (Some(moto), Some(site)) = (Moto::start(folder.path()), Site::behind(in_turn())) else { return };
    let keys = moto.keys(folder.path(), SECRET);
    let node = site.node(&keys, "");
    let before = site.one_certificate(&[&node], None);

    drop(moto);
    let node = site.node_in(node.served.into_folder(), &keys, "");

    assert_eq!(node.place.certificate(&site.pebble.root_certificate()), Some(before));
    patiently("the outage to be told", || node.order()["state"] == "failing");
    let why = node.order()["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("the storage (`tls.storage`): acme/certificates/") && why.contains("refused"), "{why}");
    assert_eq!(node.served.events().matches("not looked after").count(), 1, "{}", node.served.events());
    assert_eq!(site.issued(), 1);
}

#[test]
fn a_storage_that_cannot_be_used_is_refused_with_its_place() {
    let folder = served::folder();
    fs::write(folder.path().join("short"), "short").unwrap();
    let config = format!(
        "listeners: [{{ address: '127.0.0.1:0', tls: true }}]\n\
         tls: {{ storage: s3://site, storage_options: {{ secret_file: '{}' }} }}\n\
         upstreams: {{ app: {{ endpoints: ['127.0.0.1:1'] }} }}\nroutes: [{{ prefix: /, upstream: app }}]\n",
        folder.path().join("short").display()
    );
    let mut served = Served::spawn(served::folder(), Path::new(env!("CARGO_BIN_EXE_vestibule")), &config, |_| {});

    assert_eq!(served.ended().code(), Some(78));
    let events = served.events();
    assert!(
        events.contains("tls.storage_options.secret_file: ")
            && events.contains("has 5 bytes, and a secret at least 32"),
        "{events}"
    );
}
