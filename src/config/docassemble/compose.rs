//! What docassemble's settings mean for a front door, as a tree of our own keys.
//!
//! An overlay changes any of it, so that nothing here has to be more than right for docassemble as it is installed.

use std::{
    env, fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::OFlags;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    super::{
        LONGEST_FILE,
        admin::DEFAULT_SOCKET,
        error::{Fault, Origin, Position},
        plan::{CertificateHost, DocassemblePlan},
        tree::{Key, Node, Value},
        trust::untrusted,
    },
    reader::ROOT,
    settings::{Placed, Settings, Supervisor, WebServer},
};

/// A configuration that was made of docassemble's.
#[derive(Debug)]
pub(in super::super) struct Composed {
    pub(in super::super) tree: Node,
    pub(in super::super) plan: DocassemblePlan,
    /// What is to be told, those of the settings included.
    pub(in super::super) warnings: Vec<Fault>,
}

/// What `settings`, read from `file`, mean.
///
/// # Errors
///
/// They leave nothing to serve.
pub(in super::super) fn compose(settings: &Settings, file: &Path) -> Result<Composed, Fault> {
    if !settings.role.web && !settings.role.log {
        return Err(Fault {
            position: Position { origin: Origin::Environment, line: 1, column: 1 },
            at: "CONTAINERROLE".to_owned(),
            problem: "neither `web` nor `log` is among the roles of this machine, so it needs no front door".to_owned(),
        });
    }
    let root = installed();
    let (warnings, awaited, log_folder) = (settings.warnings.clone(), Vec::new(), root.join("log"));
    let mut composer = Composer { settings, warnings, awaited, log_folder };
    let roots = [root.join("log"), root.clone()];
    if settings.role.log {
        composer.log_folder = composer.folder("log", settings.log_folder.as_ref(), &roots);
    }
    let tree = composer.tree();
    let folders = ["config", "backup", "certs"].map(|name| root.join(name));
    let private = folders.into_iter().chain([PathBuf::from(CERTIFICATES)]).collect();
    let supervisors = settings.public_addresses.iter().map(|address| (*address, SUPERVISOR_PORT).into()).collect();
    let plan = DocassemblePlan { file: file.to_owned(), awaited: composer.awaited, private, supervisors };
    Ok(Composed { tree, plan, warnings: composer.warnings })
}

struct Composer<'s> {
    settings: &'s Settings,
    warnings: Vec<Fault>,
    awaited: Vec<PathBuf>,
    log_folder: PathBuf,
}

impl Composer<'_> {
    fn tree(&mut self) -> Node {
        let Settings { root, behind_balancer, administrator, web_server, .. } = self.settings;
        let mut keys = vec![("listeners", self.listeners())];
        if let Some(host) = &self.settings.host {
            keys.push(("host", text(&host.value, host.position)));
        }
        keys.push(("tls", self.tls()));
        if behind_balancer.value {
            let networks = BALANCERS.map(|network| text(network, behind_balancer.position));
            keys.push(("trusted_proxies", list(networks, behind_balancer.position)));
            // Longer than a balancer keeps its idle connections, so that it closes them, not we.
            keys.push(("limits", map([("keep_alive", word("75s"))])));
        }
        keys.push(("upstreams", self.upstreams(root)));
        keys.push(("routes", self.routes(root)));
        if let Some(administrator) = administrator {
            keys.push(("administrator", text(&administrator.value, administrator.position)));
        }
        let log = if *web_server == WebServer::Apache { "/var/log/apache2" } else { "/var/log/nginx" };
        // Where logrotate looks after the folder, as Debian's packages have it, two would rotate.
        let rotated = Path::new("/etc/logrotate.d").join(log.trim_start_matches("/var/log/")).exists();
        let rotate = || rotated.then(|| ("rotate", Node::scalar("null", true, START)));
        let file = |name: &str| vec![("path", word(&format!("{log}/{name}")))].into_iter().chain(rotate());
        keys.push(("access_log", map(file("access.log").chain([("format", word("combined"))]))));
        keys.push(("error_log", map(file("error.log"))));
        keys.push(("admin", word(&format!("unix:{DEFAULT_SOCKET}"))));
        // What their programs are given under Supervisor, less a moment: `stopwaitsecs` is 60 for Apache, 20 for nginx.
        keys.push(("drain", word(if *web_server == WebServer::Apache { "58s" } else { "18s" })));
        map(keys)
    }

    fn listeners(&self) -> Node {
        let Settings { http_port, https, behind_balancer, .. } = self.settings;
        let mut listeners = Vec::new();
        if self.settings.role.web {
            let plain = vec![("address", any(http_port.value, http_port.position))];
            let redirect = if https.value { self.redirect(https.position) } else { Vec::new() };
            listeners.push(map(plain.into_iter().chain(redirect)));
            if https.value {
                listeners.push(map([("address", any(443, https.position)), ("tls", text("true", https.position))]));
            }
            if behind_balancer.value {
                let address = vec![("address", any(8081, behind_balancer.position))];
                listeners.push(map(address.into_iter().chain(self.redirect(behind_balancer.position))));
            }
        }
        if self.settings.role.log {
            // Where nginx had it, and where Apache had it.
            listeners.extend(
                [8082, 8080].map(|port| map([("address", any(port, START)), ("log_server", self.log_server())])),
            );
        }
        list(listeners, START)
    }

    fn log_server(&self) -> Node {
        let folder = text(&self.log_folder.to_string_lossy(), START);
        map([("folder", folder), ("index", word("log")), ("supervisor", map(self.supervisor()))])
    }

    /// What supervisord wants to be told.
    fn supervisor(&self) -> Vec<(&'static str, Node)> {
        match &self.settings.supervisor {
            Some(Placed { value: Supervisor { username, password }, position }) => {
                vec![("username", text(username, *position)), ("password", text(password, *position))]
            }
            None => Vec::new(),
        }
    }

    /// docassemble's supervisord, and a program of its.
    fn program(&self, name: &str) -> Node {
        // As docassemble's own watchdog has it, and for any program; whether it is restarted is the administrator's to say.
        let watch = map([("cpu", word("90"))]);
        map(vec![("program", word(name)), ("watch", watch)].into_iter().chain(self.supervisor()))
    }

    fn redirect(&self, position: Position) -> Vec<(&'static str, Node)> {
        let mut keys = vec![("redirect", text("https", position))];
        if let Some(port) = self.settings.https_port.as_ref().filter(|port| port.value != 443) {
            keys.push(("https_port", text(&port.value.to_string(), port.position)));
        }
        keys
    }

    fn tls(&mut self) -> Node {
        let Settings { protocols, ciphers, .. } = self.settings;
        let mut keys = vec![
            ("protocols", list(protocols.value.iter().map(|name| text(name, protocols.position)), protocols.position)),
            (
                "ciphers",
                list(ciphers.value.iter().map(|cipher| text(cipher.name(), ciphers.position)), ciphers.position),
            ),
        ];
        if self.settings.https.value {
            let ordered = self.ordered();
            if let Some(position) =
                self.settings.lets_encrypt.as_ref().filter(|_| ordered.is_some()).map(|used| used.position)
            {
                keys.extend(self.places(position));
            }
            let certificates: Vec<_> = ordered.into_iter().chain(self.certificate()).collect();
            keys.push(("certificates", list(certificates, START)));
        }
        map(keys)
    }

    /// The certificate that is ordered for the host, with `use lets encrypt`.
    fn ordered(&mut self) -> Option<Node> {
        let used = self.settings.lets_encrypt.as_ref()?.position;
        let Some(host) = &self.settings.host else {
            self.warn(used, "use lets encrypt", "no certificate is ordered without `external hostname`".to_owned());
            return None;
        };
        if CertificateHost::parse(&host.value).is_none() {
            let problem = format!("no certificate is ordered for `{}`, which no authority knows", host.value);
            self.warn(host.position, "use lets encrypt", problem);
            return None;
        }
        if !self.settings.role.all {
            // Each of several web servers would order, and none answer for the others.
            let problem = "no certificate is ordered, since there may be other web servers; name a storage that they share and the \
                           certificate in an overlay: `tls: { storage: …, certificates: [{ hosts: […], acme: {} }] }`";
            self.warn(used, "use lets encrypt", problem.to_owned());
            return None;
        }
        let email =
            self.settings.lets_encrypt_email.as_ref().map(|email| ("email", text(&email.value, email.position)));
        let hosts = list([text(&host.value, host.position)], host.position);
        Some(map([("hosts", hosts), ("acme", map(email))]))
    }

    /// Where a certificate that is ordered comes from, and goes to, as certbot's did.
    fn places(&mut self, position: Position) -> Vec<(&'static str, Node)> {
        let folder = || text(CERTBOT, position);
        // certbot had it before us, and its folder is what docassemble's scripts look at.
        let mut export = vec![("folder", folder()), ("replace", Node::scalar("true", true, position))];
        let backup = installed().join("backup/letsencrypt.tar.gz");
        let backup = Some(&backup).filter(|backup| backup.exists() && untrusted(backup).is_none());
        let import = [folder()].into_iter().chain(backup.map(|backup| text(&backup.to_string_lossy(), position)));
        let mut places = vec![("import", list(import, position))];
        let own = self.certificate_folder().join("exim.crt");
        if Path::new(EXIM).is_dir() {
            export.push(("files", list([exim(&own)], position)));
            // Where the mail server's is another one, it has nothing to read anew.
            if !own.exists() {
                let server: &[&str] =
                    if self.settings.supervisor.is_some() { &[] } else { &["-s", "http://localhost:9001"] };
                let command = ["supervisorctl"].iter().chain(server).chain(&["restart", "exim4"]);
                let command = list(command.map(|word| self::word(word)), position);
                places.push(("deploy", list([map([("command", command)])], position)));
            }
            self.awaited.push(own);
        }
        places.push(("export", map(export)));
        places
    }

    /// The first of docassemble's own certificates that is there; none: one is made.
    fn certificate(&mut self) -> Option<Node> {
        let mut candidates = Vec::new();
        let folder = self.certificate_folder();
        let nginx = (folder.join("nginx.crt"), folder.join("nginx.key"), None);
        let apache = (folder.join("apache.crt"), folder.join("apache.key"), Some(folder.join("apache.ca.pem")));
        if self.settings.web_server == WebServer::Apache {
            candidates.extend([apache, nginx]);
        } else {
            candidates.extend([nginx, apache]);
        }
        for (certificate, key, chain) in &candidates {
            self.awaited.extend([certificate, key].into_iter().chain(chain).cloned());
        }
        let position = self.settings.https.position;
        let (certificate, key, chain) =
            candidates.into_iter().find(|(certificate, key, _)| self.is_usable(certificate, key))?;
        let path = |path: &Path| text(&path.to_string_lossy(), position);
        let mut files = vec![("certificate", path(&certificate)), ("key", path(&key))];
        if let Some(chain) = chain.filter(|chain| chain.exists() && untrusted(chain).is_none()) {
            files.push(("chain", path(&chain)));
        }
        Some(map([("files", map(files))]))
    }

    /// Whether both are there, root may read them, and they are nobody else's.
    fn is_usable(&mut self, certificate: &Path, key: &Path) -> bool {
        if !certificate.exists() || !key.exists() {
            return false;
        }
        let unused = format!("{} is not used:", certificate.display());
        // Before anything in them is opened: others could have put there what root waits for, or must not read.
        let why = untrusted(certificate).or_else(|| untrusted(key)).or_else(|| {
            is_sample(certificate).then(|| "it is docassemble's sample, whose key everybody has".to_owned())
        });
        if let Some(why) = &why {
            self.warn(self.settings.https.position, "use https", format!("{unused} {why}"));
        }
        why.is_none()
    }

    fn certificate_folder(&mut self) -> PathBuf {
        let roots = [PathBuf::from(CERTIFICATES), installed().join("certs")];
        self.folder("cert install directory", self.settings.certificate_folder.as_ref(), &roots)
    }

    /// The folder that `config.yml` names, if it is in one of `roots`; the first of them otherwise.
    fn folder(&mut self, key: &str, named: Option<&Placed<String>>, roots: &[PathBuf]) -> PathBuf {
        let Some(named) = named else { return roots[0].clone() };
        let path = Path::new(&named.value);
        let leads_up = path.components().any(|part| part == Component::ParentDir);
        if !leads_up && roots.iter().any(|root| path.starts_with(root)) {
            return path.to_owned();
        }
        let problem = format!(
            "the application can write this file, so no folder outside {} is taken from it; name it in `--config` instead",
            roots[0].display()
        );
        self.warn(named.position, key, problem);
        roots[0].clone()
    }

    fn upstreams(&self, root: &Placed<String>) -> Node {
        let mut upstreams = Vec::new();
        if self.settings.role.web {
            let (protocol, endpoint, threads) = match self.settings.web_server {
                WebServer::Nginx => ("uwsgi", SOCKET, "6"),
                WebServer::Apache => ("uwsgi", SOCKET, "5"),
                WebServer::None => ("http", "127.0.0.1:80", "6"),
            };
            let health = format!("{}health_check", root.value);
            let ready = format!("{health}?ready=1");
            let app = map([
                ("protocol", word(protocol)),
                ("endpoints", list([word(endpoint)], START)),
                ("concurrency", word(threads)),
                // Twice as many as come at a busy site while docassemble is loaded, which takes ten seconds of a slow machine.
                ("queue", map([("limit", word("1024"))])),
                ("health", map([("path", text(&health, root.position)), ("ready", text(&ready, root.position))])),
                ("supervisor", self.program("uwsgi")),
            ]);
            upstreams.push(("app", app));
            if let [first, ..] = &self.settings.websockets[..] {
                let endpoints =
                    self.settings.websockets.iter().map(|endpoint| text(&endpoint.value, endpoint.position));
                let endpoints = list(endpoints, first.position);
                // It loads all of docassemble at its start; a browser waits for 20 s, and then asks again by itself.
                let supervisor = self.program("websockets");
                let keys = [("endpoints", endpoints), ("hold", word("15s")), ("supervisor", supervisor)];
                upstreams.push(("websockets", map(keys)));
            }
        }
        if self.settings.role.log {
            let endpoint = list([word(LOG_SOCKET)], START);
            upstreams.push(("log", map([("protocol", word("uwsgi")), ("endpoints", endpoint), ("hold", word("0"))])));
        }
        map(upstreams)
    }

    fn routes(&self, root: &Placed<String>) -> Node {
        let Settings { timeout, body_limit, offload, cross_site_domain, .. } = self.settings;
        let mut routes = Vec::new();
        // The newer spelling is the application's business.
        let origin = || cross_site_domain.as_ref().map(|site| ("allow_origin", text(&site.value, site.position)));
        if self.settings.role.web {
            if !self.settings.websockets.is_empty() {
                let never = || word("false");
                let keys = vec![
                    ("prefix", text(&format!("{}ws/", root.value), root.position)),
                    ("strip_prefix", word("true")),
                    ("upstream", word("websockets")),
                    // Long polling: every byte at once.
                    ("buffer", map([("request", never()), ("response", never())])),
                    ("compress", never()),
                ];
                routes.push(map(keys.into_iter().chain(origin())));
            }
            let limit = match body_limit.value {
                Some(bytes) => text(&format!("{bytes}B"), body_limit.position),
                None => Node::scalar("null", true, body_limit.position),
            };
            let folders: &[&str] = if offload.value { &FILES } else { &[] };
            let keys = vec![
                ("prefix", text(&root.value, root.position)),
                ("upstream", word("app")),
                ("timeout", text(&format!("{}s", timeout.value), timeout.position)),
                ("body_limit", limit),
                ("files", list(folders.iter().map(|folder| word(folder)), offload.position)),
            ];
            routes.push(map(keys.into_iter().chain(origin())));
        }
        list(routes, START)
    }

    fn warn(&mut self, position: Position, at: &str, problem: String) {
        self.warnings.push(Fault { position, at: at.to_owned(), problem });
    }
}

/// A port on every address.
fn any(port: u16, position: Position) -> Node {
    // Both kinds of addresses, unless the kernel has one only.
    let any = if Path::new("/proc/net/if_inet6").exists() { "[::]" } else { "0.0.0.0" };
    text(&format!("{any}:{port}"), position)
}

/// Where docassemble is; whoever starts us says it, never `config.yml`.
fn installed() -> PathBuf {
    env::var_os("DA_ROOT").map(PathBuf::from).filter(|root| root.is_absolute()).unwrap_or_else(|| ROOT.into())
}

/// Whether it is one of the certificates that docassemble's image comes with, whose keys are in its public repository.
fn is_sample(certificate: &Path) -> bool {
    let mut pem = Vec::new();
    // A pipe in its place would be waited for.
    let mut options = fs::OpenOptions::new();
    let opened = options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(certificate);
    let file = opened.and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let read =
        file.and_then(|(is_file, file)| if is_file { file.take(LONGEST_FILE).read_to_end(&mut pem) } else { Ok(0) });
    read.is_ok()
        && CertificateDer::from_pem_slice(&pem).is_ok_and(|certificate| {
            let digest = digest(&SHA256, &certificate);
            SAMPLES.iter().any(|sample| digest.as_ref() == sample)
        })
}

fn text(value: &str, position: Position) -> Node {
    Node::scalar(value, false, position)
}

/// A word that no setting says.
fn word(value: &str) -> Node {
    text(value, START)
}

fn list(items: impl IntoIterator<Item = Node>, position: Position) -> Node {
    Node { position, value: Value::Sequence(items.into_iter().collect()) }
}

fn map<'k>(entries: impl IntoIterator<Item = (&'k str, Node)>) -> Node {
    let entry = |(name, node): (&str, Node)| (Key { position: node.position, name: name.to_owned() }, node);
    Node { position: START, value: Value::Mapping(entries.into_iter().map(entry).collect()) }
}

/// The files of docassemble's mail server, which keeps what it has while there is an `own` one.
fn exim(own: &Path) -> Node {
    map([
        ("certificate", word(&format!("{EXIM}/exim.crt"))),
        ("key", word(&format!("{EXIM}/exim.key"))),
        ("group", word("Debian-exim")),
        ("mode", word("0640")),
        ("unless", word(&own.to_string_lossy())),
    ])
}

const START: Position = Position::start(Origin::Docassemble);
/// Where docassemble's uWSGI listens.
const SOCKET: &str = "unix:/var/run/uwsgi/docassemble.sock";
/// Where docassemble's supervisord listens, on every address.
const SUPERVISOR_PORT: u16 = 9001;
/// Where docassemble's list of logs listens, where there is one.
const LOG_SOCKET: &str = "unix:/var/run/uwsgi/docassemblelog.sock";
/// Where docassemble installs certificates.
const CERTIFICATES: &str = "/etc/ssl/docassemble";
/// Where docassemble's scripts look for the certificates of Let's Encrypt.
const CERTBOT: &str = "/etc/letsencrypt";
/// Where docassemble's mail server looks for its own.
const EXIM: &str = "/etc/exim4";
/// What the application may have sent: its packages and uploads, and what it makes on request.
const FILES: [&str; 2] = ["/usr", "/tmp"];
/// What docassemble's web servers take for load balancers.
const BALANCERS: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
/// SHA-256 of the certificates (DER) in docassemble's image; of 2015, for `localhost` of Example Inc.
const SAMPLES: [[u8; 32]; 1] = [[
    0x51, 0xa0, 0xc6, 0x0d, 0x83, 0x96, 0x79, 0x51, 0xeb, 0xba, 0x97, 0x5c, 0xf6, 0x6a, 0xbb, 0x8e, 0xa6, 0x80, 0xfc,
    0x17, 0x2f, 0x4b, 0x84, 0xdf, 0x9f, 0xdf, 0x1c, 0x1a, 0x56, 0xaf, 0x3a, 0xe5,
]];
