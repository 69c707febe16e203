//! Plans for tests of what a plan asks of the system.

use std::{collections::BTreeMap, num::NonZeroUsize, path::Path, time::Duration};

use crate::config::{LimitsPlan, ListenAddress, ListenerPlan, Plan, SpoolPlan, TlsPlan, TrustedProxies};

/// One TLS listener on port 0 and nothing else, with storage and spool in `folder`.
pub(crate) fn tls_plan(folder: &Path) -> Plan {
    let listener = ListenerPlan {
        address: ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()),
        tls: true,
        redirect: None,
        proxy_protocol: false,
        log_server: None,
        client_ca: None,
    };
    let second = Duration::from_secs(1);
    Plan {
        backends: BTreeMap::new(),
        sources: Vec::new(),
        docassemble: None,
        warnings: Vec::new(),
        listeners: vec![listener],
        host: None,
        aliases: Vec::new(),
        tls: TlsPlan {
            tls12: true,
            tls13: true,
            ciphers: crate::config::Cipher::ALL.to_vec(),
            certificates: Vec::new(),
            acme: Vec::new(),
            fetched: Vec::new(),
            storage: folder.to_owned(),
            shared: None,
            import: Vec::new(),
            export: None,
            deploy: Vec::new(),
        },
        trusted_proxies: TrustedProxies::default(),
        upstreams: BTreeMap::new(),
        resolver: Vec::new(),
        routes: Vec::new(),
        access_log: None,
        error_log: None,
        admin: None,
        workers: NonZeroUsize::new(2).unwrap(),
        administrator: None,
        user: "www-data".to_owned(),
        drain: second,
        spool: SpoolPlan { path: folder.join("spool"), limit: 1, memory: 1 },
        limits: LimitsPlan {
            connections: 1,
            header_bytes: 1,
            header_count: 1,
            uri_bytes: 1,
            streams: 1,
            handshake_timeout: second,
            head_timeout: second,
            keep_alive: second,
            progress_timeout: second,
            minimum_rate: 0,
            connections_per_address: None,
            streams_per_address: None,
            handshakes: None,
            handshakes_per_address: None,
            requests: Vec::new(),
            exempt: TrustedProxies::default(),
            memory: None,
        },
    }
}
