//! Handshakes over real sockets with rustls, OpenSSL and curl as the clients.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::Arc,
};

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, NamedGroup, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
    version,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::{
    Certificate, CertificateStore, ServerConfigs, TicketKeys, Ticketer, TlsInfo,
    testing::{Authority, material},
};
use crate::{
    config::{HostName, TlsPlan},
    keeper::{secrets, testing::tls_plan},
};

/// What a client saw of a handshake that succeeded, and what we saw.
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    /// `None` where TLS 1.2 resumes.
    group: Option<NamedGroup>,
    kind: HandshakeKind,
    server: TlsInfo,
}

fn ticketer() -> Arc<Ticketer> {
    Ticketer::new(&TicketKeys::generate().unwrap())
}

fn plan(tls12: bool, tls13: bool) -> TlsPlan {
    TlsPlan {
        tls12,
        tls13,
        ciphers: crate::config::Cipher::ALL.to_vec(),
        certificates: Vec::new(),
        acme: Vec::new(),
        fetched: Vec::new(),
        storage: "/nonexistent".into(),
        shared: None,
        import: Vec::new(),
        export: None,
        deploy: Vec::new(),
    }
}

fn configs(certificates: Vec<Certificate>) -> ServerConfigs {
    ServerConfigs::new(&plan(true, true), Arc::new(CertificateStore::new(certificates)), &ticketer(), None).unwrap()
}

fn client(authority: &Authority) -> ClientConfig {
    client_with(authority, &[&version::TLS13, &version::TLS12], |_| {})
}

fn client_with(
    authority: &Authority,
    versions: &[&'static rustls::SupportedProtocolVersion],
    change: impl FnOnce(&mut rustls::crypto::CryptoProvider),
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.der().clone()).unwrap();
    let mut provider = aws_lc_rs::default_provider();
    change(&mut provider);
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Both ends of one connection; a byte from the server brings the client the tickets as well.
async fn handshake(configs: &ServerConfigs, client: &Arc<ClientConfig>, name: &str) -> Result<Seen, std::io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let server = async {
        let (stream, _) = listener.accept().await?;
        let local = stream.local_addr()?.ip();
        let (mut stream, info) = configs.accept(stream, Some(local)).await?.unwrap();
        stream.write_all(b"!").await?;
        stream.shutdown().await?;
        std::io::Result::Ok(info)
    };
    let client = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(Arc::clone(client)).connect(name, stream).await?;
        stream.read_exact(&mut [0]).await?;
        let connection = stream.get_ref().1;
        let chain = connection.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let group = connection.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
        std::io::Result::Ok((chain, group, connection.handshake_kind().unwrap()))
    };
    let (server, client) = tokio::join!(server, client);
    let (chain, group, kind) = client?;
    Ok(Seen { chain, group, kind, server: server? })
}

fn leaf(certificate: &Certificate) -> &CertificateDer<'static> {
    &certificate.key().unwrap().cert[0]
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    let make = |names: &[&str]| authority.certificate(names, &PKCS_ECDSA_P256_SHA256);
    let certificates = [make(&["first.example"]), make(&["*.example.org"]), make(&["a.example.org"])];
    let configs = configs(certificates.to_vec());
    let client = Arc::new(client(&authority));

    for (name, expected) in [("first.example", 0), ("b.example.org", 1), ("a.example.org", 2), ("A.Example.ORG", 2)] {
        let seen = handshake(&configs, &client, name).await.unwrap();
        assert_eq!(&seen.chain[0], leaf(&certificates[expected]), "{name}");
        assert_eq!(seen.server.server_name.as_deref(), Some(name.to_ascii_lowercase().as_str()));
    }
}

#[tokio::test]
async fn a_client_that_names_nobody_gets_the_certificate_of_the_address_or_the_first() {
    let authority = Authority::new();
    let first = authority.certificate(&["first.example"], &PKCS_ECDSA_P256_SHA256);
    let numbered = authority.certificate(&["127.0.0.1"], &PKCS_ECDSA_P256_SHA256);
    let mut nameless = client(&authority);
    nameless.enable_sni = false;
    let nameless = Arc::new(nameless);

    let without = handshake(&configs(vec![first.clone()]), &nameless, "first.example").await.unwrap();
    let with = handshake(&configs(vec![first.clone(), numbered.clone()]), &nameless, "127.0.0.1").await.unwrap();

    assert_eq!(&without.chain[0], leaf(&first));
    assert_eq!(without.server.server_name, None);
    assert_eq!(&with.chain[0], leaf(&numbered));
}

#[tokio::test]
async fn an_unknown_name_gets_the_first_certificate_which_the_client_can_refuse() {
    let authority = Authority::new();
    let configs = configs(vec![authority.certificate(&["first.example"], &PKCS_ECDSA_P256_SHA256)]);

    let refused = handshake(&configs, &Arc::new(client(&authority)), "other.example").await.err().unwrap();

    assert!(refused.to_string().contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn a_client_without_ecdsa_gets_the_rsa_certificate() {
    let authority = Authority::new();
    let ecdsa = authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256);
    let rsa = authority.certificate(&["a.example"], &PKCS_RSA_SHA256);
    let configs = configs(vec![rsa.clone(), ecdsa.clone()]);
    let rsa_suites = client_with(&authority, &[&version::TLS12], |provider| {
        provider.cipher_suites.retain(|suite| suite.suite().as_str().is_some_and(|name| name.contains("_RSA_")));
    });

    let modern = handshake(&configs, &Arc::new(client(&authority)), "a.example").await.unwrap();
    let old = handshake(&configs, &Arc::new(rsa_suites), "a.example").await.unwrap();

    assert_eq!(&modern.chain[0], leaf(&ecdsa));
    assert_eq!(&old.chain[0], leaf(&rsa));
}

#[tokio::test]
async fn the_chain_is_sent_whole() {
    let authority = Authority::new();
    let certificate = authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256);
    let expected = [leaf(&certificate).clone(), authority.intermediate.der().clone()];

    let seen = handshake(&configs(vec![certificate]), &Arc::new(client(&authority)), "a.example").await.unwrap();

    assert_eq!(seen.chain, expected);
}

#[tokio::test]
async fn only_the_versions_of_the_plan_are_spoken() {
    let authority = Authority::new();
    let certificate = authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256);
    for (tls12, tls13) in [(true, false), (false, true), (true, true)] {
        let store = Arc::new(CertificateStore::new(vec![certificate.clone()]));
        let configs = ServerConfigs::new(&plan(tls12, tls13), store, &ticketer(), None).unwrap();
        for (offered, name, spoken) in [(&version::TLS12, "TLSv1.2", tls12), (&version::TLS13, "TLSv1.3", tls13)] {
            let client = Arc::new(client_with(&authority, &[offered], |_| {}));
            let seen = handshake(&configs, &client, "a.example").await;
            assert_eq!(seen.map(|seen| seen.server.version).ok(), spoken.then_some(name), "{tls12} {tls13} {name}");
        }
    }
    assert!(
        ServerConfigs::new(&plan(false, false), Arc::new(CertificateStore::new(Vec::new())), &ticketer(), None)
            .is_err()
    );
}

#[tokio::test]
async fn alpn_chooses_h2_before_http1_and_nothing_for_who_offers_nothing() {
    let authority = Authority::new();
    let configs = configs(vec![authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
    let table: [(&[&str], Option<&str>); 4] =
        [(&["http/1.1", "h2"], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&["h2"], Some("h2")), (&[], None)];

    for (offered, expected) in table {
        let mut client = client(&authority);
        client.alpn_protocols = offered.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let seen = handshake(&configs, &Arc::new(client), "a.example").await.unwrap();
        assert_eq!(seen.server.alpn, expected, "{offered:?}");
    }
}

#[tokio::test]
async fn keys_are_exchanged_with_x25519mlkem768_where_the_client_can() {
    let authority = Authority::new();
    let configs = configs(vec![authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
    let classic = client_with(&authority, &[&version::TLS13], |provider| {
        provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    });

    let modern = handshake(&configs, &Arc::new(client(&authority)), "a.example").await.unwrap();
    let older = handshake(&configs, &Arc::new(classic), "a.example").await.unwrap();

    assert_eq!(modern.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(older.group, Some(NamedGroup::X25519));
}

#[tokio::test]
async fn aes_128_comes_first_unless_the_client_asks_for_chacha_first() {
    let authority = Authority::new();
    let configs = configs(vec![authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
    let table = [
        (&version::TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_128_GCM_SHA256"),
        (&version::TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
        (
            &version::TLS12,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        ),
        (
            &version::TLS12,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        ),
    ];

    for (version, first, expected) in table {
        let client = client_with(&authority, &[version], |provider| {
            provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
        });
        let seen = handshake(&configs, &Arc::new(client), "a.example").await.unwrap();
        assert_eq!(seen.server.cipher, expected, "{first:?} first");
    }
}

#[tokio::test]
async fn a_session_resumes_on_any_core() {
    let authority = Authority::new();
    let configs = configs(vec![authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
    for version in [&version::TLS12, &version::TLS13] {
        let client = Arc::new(client_with(&authority, &[version], |_| {}));

        let first = handshake(&configs, &client, "a.example").await.unwrap();
        // A clone is what another core has.
        let second = handshake(&configs.clone(), &client, "a.example").await.unwrap();

        assert_eq!((first.kind, second.kind), (HandshakeKind::Full, HandshakeKind::Resumed), "{version:?}");
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_in_the_next_handshake() {
    let authority = Authority::new();
    let (old, new) = (
        authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256),
        authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256),
    );
    let store = Arc::new(CertificateStore::new(vec![old.clone()]));
    let configs = ServerConfigs::new(&plan(true, true), Arc::clone(&store), &ticketer(), None).unwrap();

    let before = handshake(&configs, &Arc::new(client(&authority)), "a.example").await.unwrap();
    store.replace(vec![new.clone()]);
    let after = handshake(&configs, &Arc::new(client(&authority)), "a.example").await.unwrap();

    assert_eq!((&before.chain[0], &after.chain[0]), (leaf(&old), leaf(&new)));
}

#[tokio::test]
async fn what_is_not_tls_is_refused_and_so_is_everything_without_a_certificate() {
    let configs = configs(Vec::new());
    let authority = Authority::new();
    let (mut ours, mut theirs) = tokio::io::duplex(1024);
    let (accepted, ()) = tokio::join!(configs.accept(&mut ours, None), async {
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    });

    assert_eq!(accepted.map(|_| ()).unwrap_err().kind(), ErrorKind::InvalidData);
    let mut alert = [0];
    theirs.read_exact(&mut alert).await.unwrap();
    assert_eq!(alert, [0x15], "an alert says why");
    assert!(handshake(&configs, &Arc::new(client(&authority)), "a.example").await.is_err());
}

/// What `program` prints, on either stream; `None` if it is not installed.
async fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let run = tokio::process::Command::new(program).args(arguments).stdin(Stdio::null()).output().await;
    match run {
        Ok(output) => {
            Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            eprintln!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Answers whoever connects with a page, again and again; never returns.
async fn serve(listener: TcpListener, configs: &ServerConfigs) -> std::convert::Infallible {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let local: IpAddr = stream.local_addr().unwrap().ip();
        if let Ok(Some((mut stream, _))) = configs.accept(stream, Some(local)).await {
            let page = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nwelcome\n";
            // A client that has seen enough has gone.
            drop(stream.write_all(page).await);
            drop(stream.shutdown().await);
        }
    }
}

async fn ask(
    configs: &ServerConfigs,
    program: &str,
    arguments: impl AsyncFnOnce(SocketAddr) -> Vec<String>,
) -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let arguments = arguments(listener.local_addr().unwrap()).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tokio::select! {
        never = serve(listener, configs) => match never {},
        printed = output(program, &arguments) => printed,
    }
}

#[tokio::test]
async fn openssl_verifies_the_chain_and_is_given_aes_128_or_the_chacha_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let root = folder.path().join("root.pem");
    fs::write(&root, authority.root.pem()).unwrap();
    let configs = configs(vec![authority.certificate(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
    let table = [
        ("", "Cipher is TLS_AES_128_GCM_SHA256"),
        ("-ciphersuites TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", "Cipher is TLS_CHACHA20_POLY1305_SHA256"),
        ("-tls1_2", "Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"),
    ];

    for (extra, expected) in table {
        let printed = ask(&configs, "openssl", async |address| {
            let root = root.display();
            let line = format!(
                "s_client -connect {address} -servername a.example -verify_hostname a.example -CAfile {root} -showcerts \
                 -alpn http/1.1 {extra}"
            );
            line.split_whitespace().map(ToOwned::to_owned).collect()
        })
        .await;
        let Some(printed) = printed else { return };
        for part in [expected, "Verify return code: 0 (ok)", "ALPN protocol: http/1.1"] {
            assert!(printed.contains(part), "`{extra}`: expected `{part}` in\n{printed}");
        }
        assert_eq!(printed.matches("-----BEGIN CERTIFICATE-----").count(), 2, "{printed}");
    }
}

#[tokio::test]
async fn curl_trusts_a_self_signed_certificate_that_it_is_given() {
    let storage = tempfile::tempdir().unwrap();
    let mut plan = tls_plan(storage.path());
    plan.host = HostName::parse("site.example");
    let materials = secrets::read(&plan).unwrap();
    let configs = configs(materials.iter().map(|material| Certificate::from_material(material).unwrap()).collect());

    for host in ["site.example", "localhost", "127.0.0.1"] {
        let file = if host == "site.example" { host } else { "localhost" };
        let certificate = storage.path().join(format!("self-signed/{file}.crt"));
        let page = ask(&configs, "curl", async |address| {
            let (port, certificate) = (address.port(), certificate.display());
            let line = format!(
                "-sS --max-time 10 --noproxy * --http1.1 --cacert {certificate} --resolve {host}:{port}:127.0.0.1 \
                 https://{host}:{port}/"
            );
            line.split_whitespace().map(ToOwned::to_owned).collect()
        })
        .await;
        let Some(page) = page else { return };
        assert_eq!(page, "welcome\n", "{host}");
    }
}

#[tokio::test]
async fn a_key_that_openssl_has_encrypted_is_refused_and_the_command_we_name_decrypts_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = Authority::new().issue(&["a.example"], &PKCS_ECDSA_P256_SHA256);
    fs::write(file("plain.key"), key).unwrap();
    let run = async |arguments: &[&str]| output("openssl", arguments).await;
    let (plain, locked, opened) = (file("plain.key"), file("site.key"), file("site.key.plain"));
    if run(&["pkcs8", "-topk8", "-in", &plain, "-out", &locked, "-passout", "pass:secret"]).await.is_none() {
        return;
    }

    let mut encrypted = material(&certificate, &fs::read_to_string(&locked).unwrap(), None);
    encrypted.key_file = locked.clone().into();
    let refused = Certificate::from_material(&encrypted).unwrap_err().to_string();
    let command = format!("openssl pkey -in {locked} -out {opened}");
    assert!(refused.ends_with(&command), "{refused}");

    let mut arguments: Vec<&str> = command.split(' ').skip(1).collect();
    arguments.extend(["-passin", "pass:secret"]);
    run(&arguments).await;
    let decrypted = material(&certificate, &fs::read_to_string(&opened).unwrap(), None);
    assert!(Certificate::from_material(&decrypted).is_ok());
}
