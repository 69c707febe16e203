//! A server that speaks as S3 does: moto, from `PyPI`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use vestibule::config::{SharedService, SharedStoragePlan, StorePlan};

use super::{Peer, fetched, patiently, pebble::Authority, raw, status};

/// moto with one empty bucket, `site`, in its memory; ended when dropped.
pub(crate) struct Moto {
    _peer: Peer,
    /// For the tests themselves.
    http: SocketAddr,
    https: SocketAddr,
    authority: Authority,
}

impl Moto {
    /// Starts it with its log in `folder`. `None` where it cannot be had.
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, folder)
    }

    pub(crate) fn start_at(address: Ipv4Addr, folder: &Path) -> Option<Self> {
        let installed = Self::install()?;
        let log = folder.join("moto.log");
        // With a certificate for 127.0.0.1, under names that pebble's would have.
        let authority = Authority::new();
        let mut command = Command::new(installed.with_file_name("python3"));
        command
            .args(["-c", PROGRAM, &address.to_string()])
            .current_dir(authority.folder.path())
            .env_remove("PYTHONHOME");
        let mut peer = Peer::start(&mut command, &log);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let mut ports = Vec::new();
        patiently("moto to start", || {
            assert!(!peer.has_ended(), "moto has ended: {}", said());
            ports = said().lines().filter_map(|line| line.strip_prefix("listening at ")?.parse().ok()).collect();
            ports.len() == 2
        });
        let [http, https] = [0, 1].map(|number| SocketAddr::from((address, ports[number])));
        let moto = Self { _peer: peer, http, https, authority };
        let made = moto.ask("PUT", "");
        assert_eq!(status(&made), 200, "{made}");
        Some(moto)
    }

    /// Has it installed, for where nothing can be fetched.
    pub(crate) fn install() -> Option<PathBuf> {
        let install = ["bin/pip", "install", "--quiet", "--disable-pip-version-check", "moto[server]==5.2.5"];
        fetched("moto", "bin/moto_server", &[&["python3", "-m", "venv", "."], &install])
    }

    /// How it is reached, with the prefix `vestibule`; what else is needed is put into `folder`.
    pub(crate) fn plan(&self, folder: &Path, secret: &str) -> SharedStoragePlan {
        fs::write(folder.join("s3.key"), "secret").unwrap();
        fs::write(folder.join("secret"), secret).unwrap();
        fs::copy(&self.authority.file, folder.join("s3-ca.pem")).unwrap();
        let store = StorePlan {
            service: SharedService::S3,
            bucket: "site".to_owned(),
            prefix: "vestibule".to_owned(),
            endpoint: Some(format!("https://{}", self.https)),
            region: Some("us-east-1".to_owned()),
            identity: Some("id".to_owned()),
            key_file: Some(folder.join("s3.key")),
            ca_file: Some(folder.join("s3-ca.pem")),
        };
        SharedStoragePlan { store, secret_file: folder.join("secret"), share_tickets: false }
    }

    /// The same as keys of `tls`; `{dir}` is where a front door has its own.
    pub(crate) fn keys(&self, folder: &Path, secret: &str) -> String {
        let plan = self.plan(folder, secret);
        format!(
            "storage: s3://site/vestibule, storage_options: {{ secret_file: '{}', folder: '{{dir}}/storage', {} }}",
            plan.secret_file.display(),
            self.options(&plan.store)
        )
    }

    /// How it is reached, as keys of `storage_options`.
    pub(crate) fn options(&self, plan: &StorePlan) -> String {
        format!(
            "endpoint: 'https://{}', region: us-east-1, ca_file: '{}', access_key_id: id, secret_access_key_file: '{}'",
            self.https,
            plan.ca_file.as_ref().unwrap().display(),
            plan.key_file.as_ref().unwrap().display()
        )
    }

    /// What is stored under `key`, as it is.
    pub(crate) fn object(&self, key: &str) -> String {
        self.ask("GET", &format!("/vestibule/{key}"))
    }

    /// moto looks whether there is a signature, not at it.
    fn ask(&self, method: &str, path: &str) -> String {
        let host = self.http;
        let signature =
            "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        raw(
            host,
            format!(
                "{method} /site{path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: {signature}\r\nContent-Length: 0\r\n\r\n"
            ),
        )
    }
}

/// One request at a time: moto looks at a condition and acts on it in two steps, which are one at S3.
const PROGRAM: &str = "
import sys
import threading
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
application = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()
def serialized(environ, start_response):
    with one_at_a_time:
        return application(environ, start_response)
for certificate in [None, ('pebble.crt', 'pebble.key')]:
    server = make_server(sys.argv[1], 0, serialized, threaded=True, ssl_context=certificate)
    print('listening at %d' % server.server_port, flush=True)
    threading.Thread(target=server.serve_forever).start()
";
