//! A docassemble as its image has it, everything in its own place: real uWSGI with an application of the tests', a socket
//! server on port 5000, certificates in `/etc/ssl/docassemble`, logs in `/var/log`; and the built binary in front, which is
//! told nothing but `--docassemble`, and an `overlay.yml` where a test has one. The places are folders of the test's own, in
//! a mount namespace.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    super::support::{
        Backend, Peer, body,
        clients::{block_on, client, connect_from, tls_connect},
        program, raw, read_head, read_request, read_rest,
        served::{Served, folder},
        wait_for,
    },
    www_data,
};

/// The host of the site.
pub(super) const HOST: &str = "justice.example.com";

/// A site that is up, in a network of its own.
pub(super) struct Installed {
    pub(super) served: Served,
    application: Option<Peer>,
    _sockets: Option<Backend>,
    /// What a browser has to believe in.
    pub(super) authority: CertificateDer<'static>,
}

#[allow(clippy::unused_self, reason = "what is asked is the site of the network that this is in")]
impl Installed {
    /// Installs and starts all of it with this `config.yml`; `None` without uWSGI.
    pub(super) fn start(config: &str) -> Option<Self> {
        Self::start_with(config, &[], |_| {})
    }

    /// The same with variables, and once `prepare` has seen the folder that stands for `/`.
    pub(super) fn start_with(config: &str, variables: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Option<Self> {
        program("uwsgi")?;
        let (root, authority) = lay_out(config, prepare);
        let application = application(root.path());
        let sockets = Backend::start_on(TcpListener::bind("127.0.0.1:5000").unwrap(), socket_server);
        let site = Self::serve(root, authority, variables, application, Some(sockets));
        wait_for("the application to be ready", || {
            site.served.status()["upstreams"].as_array().is_none_or(|upstreams| {
                upstreams.iter().all(|upstream| upstream["readiness"].is_null() || upstream["readiness"] == "ready")
            })
        });
        Some(site)
    }

    /// The front door alone: neither the application nor the socket server has been started.
    pub(super) fn bare(config: &str, variables: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Self {
        let (root, authority) = lay_out(config, prepare);
        Self::serve(root, authority, variables, None, None)
    }

    fn serve(
        root: TempDir,
        authority: CertificateDer<'static>,
        variables: &[(&str, &str)],
        application: Option<Peer>,
        sockets: Option<Backend>,
    ) -> Self {
        let wrapper = root.path().join("vestibule");
        let script = SCRIPT.replace("VESTIBULE", env!("CARGO_BIN_EXE_vestibule"));
        fs::write(&wrapper, script.replace("ROOT", root.path().to_str().unwrap())).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("run/vestibule/admin.sock", root.path().join("admin.sock")).unwrap();
        let installed = root.path().join("da");
        let mut served = Served::spawn(root, &wrapper, "", |command| {
            command.env("DA_ROOT", installed).envs(variables.iter().copied());
        });
        wait_for("the front door", || {
            assert_eq!(served.child.try_wait().unwrap(), None, "{}", served.events());
            served.events().contains("listening")
        });
        Self { served, application, _sockets: sockets, authority }
    }

    /// Starts the application, after the front door; answers whether it could.
    pub(super) fn start_application(&mut self) -> bool {
        self.application = application(self.served.folder.path());
        self.application.is_some()
    }

    /// Ends the application.
    pub(super) fn stop_application(&mut self) {
        self.application = None;
    }

    /// The configuration in force.
    pub(super) fn plan(&self) -> serde_json::Value {
        serde_json::from_str(&body(&self.served.get("admin.sock", "/config"))).unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.served.path(name)
    }

    /// Puts another `config.yml` in its place, and waits until it is in force.
    pub(super) fn configure(&self, config: &str) {
        let generation = self.served.generation();
        configure(self.served.folder.path(), config);
        wait_for("another configuration", || self.served.generation() > generation);
    }

    /// What comes back for `head`, a request line and fields, on `port`.
    pub(super) fn ask(&self, port: u16, head: &str) -> String {
        raw(([127, 0, 0, 1], port).into(), format!("{head}Connection: close\r\n\r\n"))
    }

    /// `GET path` for `host` on `port`.
    pub(super) fn get(&self, port: u16, path: &str, host: &str) -> String {
        self.ask(port, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n"))
    }

    /// The same from another address.
    pub(super) fn ask_from(&self, from: &str, port: u16, head: &str) -> String {
        let mut stream = connect_from(from, SocketAddr::from(([127, 0, 0, 1], port)));
        write!(stream, "{head}Connection: close\r\n\r\n").unwrap();
        String::from_utf8(read_rest(&mut stream)).unwrap()
    }

    /// The same on port 443, over TLS to the site by its name.
    pub(super) fn ask_tls(&self, head: &str) -> String {
        let request = format!("{head}Connection: close\r\n\r\n");
        block_on(async {
            let config = client(&[&self.authority], &["http/1.1"]);
            let mut stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A peer that closes without a word has said all the same.
            stream.read_to_end(&mut answer).await.ok();
            String::from_utf8_lossy(&answer).into_owned()
        })
    }

    /// The head of what comes back, from a connection that may stay open.
    pub(super) fn head_tls(&self, request: &str) -> String {
        block_on(async {
            let config = client(&[&self.authority], &["http/1.1"]);
            let mut stream = tls_connect(([127, 0, 0, 1], 443).into(), HOST, config).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            String::from_utf8(head).unwrap()
        })
    }

    pub(super) fn get_tls(&self, path: &str, host: &str) -> String {
        self.ask_tls(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n"))
    }
}

/// The folder that stands for `/`, with `config` and a certificate, once `prepare` has seen it; and who signed that.
fn lay_out(config: &str, prepare: impl FnOnce(&Path)) -> (TempDir, CertificateDer<'static>) {
    let root = folder();
    for path in [
        "etc/ssl/docassemble",
        "var/log/nginx",
        "var/log/apache2",
        "var/lib",
        "var/tmp",
        "run/uwsgi",
        "da/config",
        "da/log",
    ] {
        fs::create_dir_all(root.path().join(path)).unwrap();
    }
    fs::set_permissions(root.path().join("var/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let authority = certify(&root.path().join("etc/ssl/docassemble"), "nginx", HOST, true);
    configure(root.path(), config);
    prepare(root.path());
    (root, authority)
}

/// Puts `config` in its place, as the application writes it.
fn configure(root: &Path, config: &str) {
    let file = root.join("da/config/config.yml");
    fs::write(&file, config).unwrap();
    chown(&file, Some(www_data()), None).unwrap();
}

/// Makes `NAME.crt` with its chain and `NAME.key` in `folder`, the key for root alone; answers the authority. Without
/// `together` the chain is in `NAME.ca.pem`.
pub(super) fn certify(folder: &Path, name: &str, host: &str, together: bool) -> CertificateDer<'static> {
    let issuing = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let root = CertifiedIssuer::self_signed(issuing("root"), KeyPair::generate().unwrap()).unwrap();
    let between = CertifiedIssuer::signed_by(issuing("between"), KeyPair::generate().unwrap(), &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &between).unwrap();
    let chain = if together { between.pem() } else { String::new() };
    fs::write(folder.join(format!("{name}.crt")), leaf.pem() + &chain).unwrap();
    if !together {
        fs::write(folder.join(format!("{name}.ca.pem")), between.pem()).unwrap();
    }
    let secret = folder.join(format!("{name}.key"));
    fs::write(&secret, key.serialize_pem()).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
    root.der().clone()
}

/// uWSGI as docassemble's image has it, at the `root` that its configuration says.
fn application(root: &Path) -> Option<Peer> {
    let uwsgi = program("uwsgi")?;
    let config = fs::read_to_string(root.join("da/config/config.yml")).unwrap();
    let mount = config.lines().find_map(|line| line.strip_prefix("root: ")).unwrap_or("/").trim_end_matches('/');
    let mount = if mount.is_empty() { "/" } else { mount };
    fs::write(root.join("application.py"), include_str!("../support/application.py")).unwrap();
    fs::write(root.join("docassemble.wsgi"), "").unwrap();
    let mut command = Command::new(uwsgi);
    command.current_dir(root).env_remove("PYTHONHOME");
    command.args([
        "--plugin",
        "python3",
        "--master",
        "--die-on-term",
        "--need-app",
        "--enable-threads",
        "--threads",
        "6",
    ]);
    command.args(["--manage-script-name", "--buffer-size", "32768", "--socket", "run/uwsgi/docassemble.sock"]);
    command.args(["--chmod-socket=666", "--touch-reload", "docassemble.wsgi", "--mount"]);
    command.arg(format!("{mount}=application.py"));
    let peer = Peer::start(&mut command, &root.join("uwsgi.log"));
    wait_for("uWSGI", || {
        fs::read_to_string(root.join("uwsgi.log")).is_ok_and(|log| log.contains("spawned uWSGI worker 1"))
    });
    Some(peer)
}

/// Answers a plain request with itself, and switches where it is asked to: then everything comes back.
pub(super) fn socket_server(mut stream: TcpStream) {
    let Some(request) = read_request(&mut stream) else { return };
    let text = String::from_utf8_lossy(&request).into_owned();
    if text.to_ascii_lowercase().contains("upgrade: websocket") {
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            if stream.write_all(&piece[..length]).is_err() {
                return;
            }
        }
        return;
    }
    if text.contains("/moved") {
        let head = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:5000/next\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).ok();
        return;
    }
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).ok();
}

/// A handshake on an open connection; answers its head, and what comes back for `hello`.
pub(super) fn upgrade(mut stream: impl Read + Write, path: &str, host: &str) -> (String, String) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: https://{host}\r\n\
         Cookie: session=x\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut stream);
    let mut back = [0; 5];
    if head.starts_with("HTTP/1.1 101") {
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut back).unwrap();
    }
    (head, String::from_utf8_lossy(&back).into_owned())
}

/// Everything else can be made read-only, and another user the one who starts it.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = serve ] || exec VESTIBULE "$@"
exec unshare --mount sh -c '
    for place in etc/ssl var/log var/lib var/tmp run; do mount --bind "ROOT/$place" "/$place" || exit 1; done
    [ -z "$READ_ONLY" ] || mount -o remount,bind,ro / || exit 1
    [ -f ROOT/overlay.yml ] && set -- --config ROOT/overlay.yml
    exec $BECOME VESTIBULE serve --docassemble "$@"' sh
"#;
