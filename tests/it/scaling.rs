//! Two front doors and four application servers, each a machine of its own in a network: what docs/scaling.md promises.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};

use super::support::{
    Peer, body, clients,
    moto::Moto,
    network::{HUB, Machine, in_network, make_hub},
    patiently,
    pebble::Pebble,
    program, served,
    served::Served,
    status,
};

#[test]
fn a_front_door_or_a_server_that_is_cut_off_loses_what_was_inside_and_comes_back() {
    // There is no way out of the network.
    if Moto::install().is_none() || program("gunicorn").is_none() || program("pebble").is_none() {
        return;
    }
    in_network(|| {
        make_hub();
        let site = Site::start();
        let load = Load::start([FIRST, SECOND], &site.pebble.root_certificate());
        load.answers_from(&["app1", "app2", "app3", "app4"], "all four are asked");

        // An application server.
        site.applications[2].machine.cut_off();
        let cut = Instant::now();
        load.until("the others have answered for a while", |answers| {
            let late = |answer: &&Answer| answer.begun > cut + Duration::from_secs(5);
            answers.iter().filter(late).count() > 200 && answers.iter().filter(late).all(|answer| answer.says != "app3")
        });
        site.applications[2].machine.plug_in();
        load.answers_from(&["app1", "app2", "app3", "app4"], "it is asked again");
        let failed = load.failures();
        assert!(failed.is_empty(), "what was inside is asked of another one: {failed:?}");

        // It is taken out of the name.
        let three: Vec<_> =
            site.applications[1..].iter().map(|application| application.machine.address.into()).collect();
        site.pebble.names.set_addresses(NAME, &three);
        load.until("it is asked no more", |answers| {
            let last = &answers[answers.len().saturating_sub(200)..];
            answers.len() > 200 && last.iter().all(|answer| answer.says != "app1")
        });
        assert!(load.failures().is_empty(), "{:?}", load.failures());

        // A front door, while a certificate is renewed.
        site.doors[0].machine.cut_off();
        let cut = Instant::now();
        load.until("the other front door has answered for a while", |answers| {
            answers.iter().filter(|answer| answer.begun > cut).count() > 200
        });
        // An authority comes to any of the addresses of a name, and is not to come to that one.
        site.pebble.names.set_addresses(HOST, &[SECOND.into()]);
        let before = site.certificate(SECOND);
        let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
        command.args(["certificates", "renew", "--config"]).arg(site.doors[1].served.path("vestibule.yml"));
        let renewal = clients::run(&mut command);
        assert!(renewal.status.success(), "{renewal:?}");
        patiently("a new certificate", || site.certificate(SECOND) != before);
        site.doors[0].machine.plug_in();
        site.pebble.names.set_addresses(HOST, &[FIRST.into(), SECOND.into()]);
        patiently("the same certificate at the one that was away", || {
            site.certificate(FIRST) == site.certificate(SECOND)
        });
        load.until("both front doors have answered", |answers| {
            let last = &answers[answers.len().saturating_sub(50)..];
            [FIRST, SECOND].iter().all(|door| last.iter().any(|answer| answer.door == *door))
        });
        let failed = load.failures();
        assert!(
            failed.len() <= CLIENTS && failed.iter().all(|failed| failed.door == FIRST && failed.begun <= cut),
            "more than what was inside: {failed:?}"
        );
        load.end();
    });
}

/// What docs/scaling.md has both front doors serve, with the authority, the storage and the name servers that there are here.
fn configuration(pebble: &Pebble, moto: &Moto, folder: &Path) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scaling.md")).unwrap();
    let (_, rest) = page.split_once("```yaml\n").unwrap();
    let mut configuration = rest.split_once("```").unwrap().0.to_owned();
    let plan = moto.plan(folder, "a secret of forty characters, as is fit.");
    let (directory, ca) = (pebble.directory(), pebble.ca_file().display());
    for (written, here) in [
        ("acme: { ", format!("acme: {{ directory: '{directory}', ca_file: '{ca}', ")),
        ("s3://justice-certificates/", "s3://site/".to_owned()),
        ("/etc/vestibule/storage-secret", format!("'{}'", plan.secret_file.display())),
        (
            "region: eu-central-1",
            format!("folder: '{{dir}}/storage'\n    {}", moto.options(&plan.store).replace(", ", "\n    ")),
        ),
        // A request that is inside a server which is cut off has to end within the time of a test.
        ("upstream: app }", "upstream: app, timeout: 2s }".to_owned()),
    ] {
        assert!(configuration.contains(written), "{written} is not in docs/scaling.md");
        configuration = configuration.replace(written, &here);
    }
    format!("{configuration}resolver: ['{}']\n", pebble.names.dns())
}

const HOST: &str = "justice.example.com";
const NAME: &str = "app.internal";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const CLIENTS: usize = 4;
/// What a request that is inside a server which has gone costs: `timeout`, and a connection.
const DEADLINE: Duration = Duration::from_secs(3);

struct Site {
    doors: Vec<Door>,
    applications: Vec<Application>,
    pebble: Pebble,
    _moto: Moto,
    _folder: tempfile::TempDir,
}

struct Door {
    served: Served,
    machine: Machine,
}

struct Application {
    _gunicorn: Peer,
    machine: Machine,
}

impl Site {
    fn start() -> Self {
        let folder = served::folder();
        let moto = Moto::start_at(HUB, folder.path()).unwrap();
        let pebble = Pebble::builder().at(HUB).http_port(80).tls_port(443).start().unwrap();
        pebble.names.set_addresses(HOST, &[FIRST.into(), SECOND.into()]);
        let applications: Vec<_> = (1..=4).map(|number| Application::start(number, folder.path())).collect();
        let endpoints: Vec<_> = applications.iter().map(|application| application.machine.address.into()).collect();
        pebble.names.set_addresses(NAME, &endpoints);
        let configuration = configuration(&pebble, &moto, folder.path());
        let doors: Vec<_> = [2, 3].map(|number| Door::start(number, configuration.clone())).into();
        let site = Self { doors, applications, pebble, _moto: moto, _folder: folder };
        patiently("one certificate", || {
            let served = site.certificate(FIRST);
            served.is_some() && served == site.certificate(SECOND)
        });
        site
    }

    /// The certificate of the authority that is served there.
    fn certificate(&self, door: Ipv4Addr) -> Option<Vec<u8>> {
        let config = clients::client(&[&self.pebble.root_certificate()], &[]);
        let address = SocketAddr::from((door, 443));
        let stream = clients::block_on(clients::tls_connect(address, HOST, config)).ok()?;
        Some(stream.get_ref().1.peer_certificates()?[0].to_vec())
    }
}

impl Door {
    fn start(number: u8, configuration: String) -> Self {
        let machine = Machine::new(number);
        let served = machine.run(move || Served::start_in(served::folder(), &configuration, |_| {}));
        Self { served, machine }
    }
}

impl Application {
    fn start(number: u8, folder: &Path) -> Self {
        let machine = Machine::new(10 + number);
        let folder = folder.join(format!("app{number}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("application.py"), APPLICATION).unwrap();
        let address = SocketAddr::from((machine.address, 8000));
        let gunicorn = machine.run(move || {
            let mut command = Command::new(program("gunicorn").unwrap());
            command.current_dir(&folder).env("NAME", format!("app{number}"));
            command.args(["--bind", &address.to_string(), "--worker-class", "gthread", "--threads", "6"]);
            command.args(["--keep-alive", "30", "application:application"]);
            Peer::start(&mut command, &folder.join("log"))
        });
        patiently("gunicorn to listen", || TcpStream::connect(address).is_ok());
        Self { _gunicorn: gunicorn, machine }
    }
}

const APPLICATION: &str = "
import os, time

def application(environ, start_response):
    time.sleep(0.01)
    answer = os.environ['NAME'].encode()
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(answer)))])
    return [answer]
";

/// Clients that ask one front door after the other, as those of a name with two addresses do: one that cannot be
/// connected to is left for the other at once.
struct Load {
    answers: Arc<Mutex<Vec<Answer>>>,
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
struct Answer {
    begun: Instant,
    door: Ipv4Addr,
    /// What the application said, or what went wrong.
    says: String,
    is_failure: bool,
}

impl Load {
    fn start(doors: [Ipv4Addr; 2], root: &rustls_pki_types::CertificateDer<'static>) -> Self {
        let (answers, is_over) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let config = Arc::new(clients::client(&[root], &[]));
        let client = |number: usize| {
            let (answers, is_over, config) = (Arc::clone(&answers), Arc::clone(&is_over), Arc::clone(&config));
            thread::spawn(move || {
                let mut turn = number;
                while !is_over.load(Ordering::Relaxed) {
                    turn += 1;
                    let answer = ask([doors[turn % 2], doors[(turn + 1) % 2]], &config);
                    answers.lock().unwrap().push(answer);
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { answers, is_over, clients }
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&[Answer]) -> bool) {
        patiently(what, || holds(&self.answers.lock().unwrap()));
    }

    /// Waits until each of `names` has answered, from now on.
    fn answers_from(&self, names: &[&str], what: &str) {
        let now = Instant::now();
        self.until(what, |answers| {
            let mut seen = BTreeMap::new();
            for answer in answers.iter().filter(|answer| answer.begun > now) {
                *seen.entry(answer.says.as_str()).or_insert(0) += 1;
            }
            names.iter().all(|name| seen.get(name).is_some_and(|count| *count > 5))
        });
    }

    fn failures(&self) -> Vec<Answer> {
        self.answers.lock().unwrap().iter().filter(|answer| answer.is_failure).cloned().collect()
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
    }
}

fn ask(doors: [Ipv4Addr; 2], config: &Arc<ClientConfig>) -> Answer {
    let begun = Instant::now();
    let connected = doors.into_iter().find_map(|door| {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((door, 443)), Duration::from_millis(500)).ok()?;
        Some((door, stream))
    });
    let Some((door, stream)) = connected else {
        return Answer { begun, door: doors[0], says: "nobody to connect to".to_owned(), is_failure: true };
    };
    stream.set_read_timeout(Some(DEADLINE * 2)).unwrap();
    let session = rustls::ClientConnection::new(Arc::clone(config), ServerName::try_from(HOST).unwrap());
    let mut stream = rustls::StreamOwned::new(session.unwrap(), stream);
    let mut answer = String::new();
    let asked = stream
        .write_all(b"GET / HTTP/1.1\r\nHost: justice.example.com\r\nConnection: close\r\n\r\n")
        .and_then(|()| stream.read_to_string(&mut answer));
    match asked {
        Ok(_) if status(&answer) == 200 => Answer { begun, door, says: body(&answer), is_failure: false },
        Ok(_) => Answer { begun, door, says: answer, is_failure: true },
        Err(error) => Answer { begun, door, says: error.to_string(), is_failure: true },
    }
}
