//! Thousands of certificates: how long they take, and that each name finds its own.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;

use crate::support::{
    clients::{self, block_on, tls_connect},
    ok,
    served::{self, Served},
    to, wait_for,
};

const COUNT: usize = 5_000;

#[test]
fn five_thousand_certificates_are_served_soon_and_found_by_name() {
    let folder = served::folder();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    fs::write(folder.path().join("key"), key.serialize_pem()).unwrap();
    let make = |number: usize| {
        let names = vec![format!("site-{number}.example"), format!("*.site-{number}.example")];
        CertificateParams::new(names).unwrap().signed_by(&key, &root).unwrap()
    };
    let mut certificates = "tls:\n  storage: storage\n  certificates:\n".to_owned();
    for number in 0..COUNT {
        fs::write(folder.path().join(number.to_string()), make(number).pem()).unwrap();
        writeln!(certificates, "  - files: {{ certificate: '{number}', key: key }}").unwrap();
    }
    let backend = ok();
    let text = to(backend.address, &certificates).replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }");

    let began = Instant::now();
    let served = Served::start_in(folder, &text, |_| {});
    let address = served.address(0);
    let started = began.elapsed();

    let root = root.der().clone();
    let shown = |name: &str| -> CertificateDer<'static> {
        let stream = block_on(tls_connect(address, name, clients::client(&[&root], &["http/1.1"]))).unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    for number in [0, 1, COUNT / 2, COUNT - 1] {
        for name in [format!("site-{number}.example"), format!("www.site-{number}.example")] {
            let found = shown(&name);
            let own = rustls_pki_types::pem::PemObject::from_pem_file(served.path(&number.to_string())).unwrap();
            assert_eq!(found, own, "{name}");
        }
    }

    let another = make(COUNT - 1);
    let began = Instant::now();
    fs::write(served.path("new"), another.pem()).unwrap();
    fs::rename(served.path("new"), served.path(&(COUNT - 1).to_string())).unwrap();
    wait_for("the new certificate", || shown(&format!("site-{}.example", COUNT - 1)) == *another.der());
    let exchanged = began.elapsed();

    let began = Instant::now();
    // Each under another name, and so another one.
    std::os::unix::fs::symlink(".", served.path("moved")).unwrap();
    served.apply(&text.replace("certificate: '", "certificate: 'moved/"));
    let moved = began.elapsed();

    eprintln!("{COUNT} certificates: started in {started:?}, one exchanged in {exchanged:?}, all moved in {moved:?}");
    for took in [started, exchanged, moved] {
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
