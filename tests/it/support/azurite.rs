//! A server that speaks as Azure's blob storage does: Azurite, from npm.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::SystemTime};

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use data_encoding::BASE64;
use vestibule::config::{SharedService, SharedStoragePlan, StorePlan};

use super::{Peer, fetched, patiently, pebble::free_ports, program, raw, status};

/// Azurite with one empty container, `site`, in its memory; ended when dropped.
pub(crate) struct Azurite {
    _peer: Peer,
    address: SocketAddr,
}

impl Azurite {
    /// Starts it with its log in `folder`. `None` where it cannot be had.
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        program("node")?;
        let install = ["npm", "install", "--no-fund", "--no-audit", "--loglevel=error", "azurite@3.35.0"];
        let installed = fetched("azurite", "node_modules/.bin/azurite-blob", &[&install])?;
        // Another process may take a port between our look and its start.
        (0..5).find_map(|_| Self::run(&installed, folder))
    }

    fn run(installed: &Path, folder: &Path) -> Option<Self> {
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(installed);
        command
            .current_dir(folder)
            .args(["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"])
            .args(["--blobPort", &port.to_string()]);
        let log = folder.join("azurite.log");
        let mut peer = Peer::start(&mut command, &log);
        let mut ended = false;
        patiently("Azurite to start", || {
            ended = peer.has_ended();
            ended || fs::read_to_string(&log).unwrap_or_default().contains("successfully listens")
        });
        if ended {
            return None;
        }
        let azurite = Self { _peer: peer, address };
        azurite.make_container();
        Some(azurite)
    }

    /// Signed with the key of the account, in the form that Microsoft calls shared key.
    fn make_container(&self) {
        let (host, date) = (self.address, httpdate::fmt_http_date(SystemTime::now()));
        let signed = format!(
            "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}/site\nrestype:container"
        );
        let key = Key::new(HMAC_SHA256, &BASE64.decode(KEY.as_bytes()).unwrap());
        let signature = BASE64.encode(sign(&key, signed.as_bytes()).as_ref());
        let request = format!(
            "PUT /{ACCOUNT}/site?restype=container HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\
             x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n"
        );
        let answer = raw(host, request);
        assert_eq!(status(&answer), 201, "{answer}");
    }

    /// How it is reached, with the prefix `vestibule`; what else is needed is put into `folder`.
    pub(crate) fn plan(&self, folder: &Path, secret: &str) -> SharedStoragePlan {
        fs::write(folder.join("azure.key"), KEY).unwrap();
        fs::write(folder.join("secret"), secret).unwrap();
        let store = StorePlan {
            service: SharedService::Azure,
            bucket: "site".to_owned(),
            prefix: "vestibule".to_owned(),
            endpoint: Some(self.endpoint()),
            region: None,
            identity: Some(ACCOUNT.to_owned()),
            key_file: Some(folder.join("azure.key")),
            ca_file: None,
        };
        SharedStoragePlan { store, secret_file: folder.join("secret"), share_tickets: false }
    }

    /// The same as keys of `tls`; `{dir}` is where a front door has its own.
    pub(crate) fn keys(&self, folder: &Path, secret: &str) -> String {
        let plan = self.plan(folder, secret);
        format!(
            "storage: azure://site/vestibule, storage_options: {{ secret_file: '{}', folder: '{{dir}}/storage', {} }}",
            plan.secret_file.display(),
            self.options(&plan.store)
        )
    }

    /// How it is reached, as keys of `storage_options`.
    pub(crate) fn options(&self, plan: &StorePlan) -> String {
        let key = plan.key_file.as_ref().unwrap().display();
        format!("endpoint: '{}', account: {ACCOUNT}, account_key_file: '{key}'", self.endpoint())
    }

    fn endpoint(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.address)
    }
}

/// What everybody knows who has an emulator.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
