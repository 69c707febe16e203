//! What testssl.sh finds in the TLS of a configuration that says nothing of it.

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::Value;

use crate::support::{
    TestGateway,
    clients::{run, tls},
    ok, program, to,
};

#[test]
fn testssl_finds_nothing_that_is_ours_to_mend() {
    let Some(testssl) = program("testssl") else { return };
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let backend = ok();
    let configuration = to(backend.address, &tls(&["site"])).replace("'127.0.0.1:0' }", "'127.0.0.1:0', tls: true }");
    let gateway = TestGateway::start_in(folder, &configuration);
    let (report, root) = (gateway.folder.path().join("report.json"), gateway.folder.path().join("root.pem"));

    let output = run(Command::new("timeout")
        .arg("150")
        .arg(testssl)
        // Not -h: the headers are the application's.
        .args(["-p", "-s", "-f", "-S", "-P", "-g", "-U"])
        .args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"])
        .args(["--connect-timeout", "5", "--openssl-timeout", "5"])
        .arg("--add-ca")
        .arg(root)
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("site.example:{}", gateway.address(0).port())));

    let said = String::from_utf8_lossy(&output.stdout);
    let findings: Vec<Value> = serde_json::from_str(&fs::read_to_string(&report).unwrap_or_default())
        .unwrap_or_else(|error| panic!("no report: {error}\n{said}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| !matches!(text(finding, "severity").as_str(), "OK" | "INFO"))
        .map(|finding| ["id", "severity", "finding"].map(|key| text(finding, key)).join(": "))
        .collect();
    let ours: Vec<_> = bad.iter().filter(|bad| !NOT_OURS.iter().any(|known| bad.starts_with(known))).collect();
    assert!(ours.is_empty(), "{ours:#?}\n{said}");
    for looked_at in
        ["TLS1_3", "cipherlist_AVERAGE", "cipher_order", "cert_chain_of_trust", "heartbleed", "LUCKY13", "RC4"]
    {
        assert!(findings.iter().any(|finding| text(finding, "id") == looked_at), "{looked_at} is missing\n{said}");
    }
}

/// Of the certificate, which has no authority that could take it back, and of the OpenSSL that testssl.sh is given.
/// The client that it resumes sessions with leaves as soon as its handshake has ended, often before any server's ticket, which
/// follows the handshake, is there; that sessions are resumed is tested in [`super::tls`].
const NOT_OURS: [&str; 3] = [
    "cert_revocation: HIGH: Neither CRL nor OCSP URI provided",
    "engine_problem: WARN: No engine or GOST support",
    "sessionresumption_ticket: WARN: check failed because of connect problem",
];

/// A root, and `site` of it, which has what a public authority would put in.
fn certificates(folder: &std::path::Path) {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();

    let mut params = CertificateParams::new(vec!["site.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "site.example");
    let day = Duration::from_secs(24 * 60 * 60);
    (params.not_before, params.not_after) = ((SystemTime::now() - day).into(), (SystemTime::now() + 89 * day).into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let site = params.signed_by(&key, &root).unwrap();
    for (name, content) in [("root.pem", root.pem()), ("site.crt", site.pem()), ("site.key", key.serialize_pem())] {
        fs::write(folder.join(name), content).unwrap();
    }
}
