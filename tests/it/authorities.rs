//! The certificate authority that the tests order from is there, and does as it is told.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::support::{
    body,
    clients::{curl, run},
    directory::{Directory, Failure, RenewalInfo, Resource},
    header,
    pebble::Pebble,
    program, status,
};

#[test]
fn pebble_answers_with_its_directory_and_again_after_a_stop() {
    let Some(mut pebble) = Pebble::builder().http_port(5002).tls_port(5001).start() else { return };
    let ca = pebble.ca_file().to_str().unwrap().to_owned();
    let directory = || curl(&["--cacert", &ca, &pebble.directory()]);
    let Some(answer) = directory() else { return };
    assert!(answer.contains(&format!("\"newOrder\": \"https://{}/", pebble.address())), "{answer}");
    let (root, url) = (pebble.root(), pebble.directory());
    assert!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");

    pebble.stop();
    assert!(std::net::TcpStream::connect(pebble.address()).is_err(), "connections are refused");
    pebble.start_again();

    assert_eq!(pebble.directory(), url);
    assert_ne!(pebble.root(), root, "another authority");
}

#[test]
fn pebble_asks_for_a_key_of_its_own_where_it_is_told_to() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let Some(pebble) = Pebble::builder().eab("kid-1", key).start() else { return };
    let Some(answer) = curl(&["--cacert", pebble.ca_file().to_str().unwrap(), &pebble.directory()]) else { return };
    assert!(answer.contains("\"externalAccountRequired\": true"), "{answer}");
}

#[test]
fn an_order_before_pebble_stays_at_our_address_and_its_profile_and_predecessor_are_recorded() {
    let Some(pebble) = Pebble::builder().start() else { return };
    let directory = Directory::before(&pebble);
    directory.set_profiles(&[("shortlived", "six days"), ("classic", "ninety days")]);
    directory.set_caa_identities(&["ca.example"]);
    let Some(mut account) = Account::new(&directory, pebble.ca_file()) else { return };
    assert_eq!(account.urls["meta"]["profiles"]["shortlived"], "six days");
    assert_eq!(account.urls["meta"]["caaIdentities"], json!(["ca.example"]));
    let base = directory.url().replace("/dir", "/");
    assert!(account.id.as_ref().unwrap().starts_with(&base), "{:?}", account.id);

    let mut order = json!({
        "identifiers": [{ "type": "dns", "value": "one.example" }],
        "profile": "shortlived",
        "replaces": "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",
    });
    let answer = account.post("newOrder", &order.to_string());

    assert_eq!(status(&answer), 201, "{answer}");
    let url = header(&answer, "location").unwrap();
    assert!(url.starts_with(&base), "{url}");
    assert!(body(&answer).contains(&format!("\"finalize\": \"{base}")), "{answer}");
    let read = account.post(&url, "");
    assert_eq!(status(&read), 200, "signed for our address, and taken by pebble: {read}");

    order["profile"] = "other".into();
    let refused = account.post("newOrder", &order.to_string());
    assert!(refused.contains("urn:ietf:params:acme:error:invalidProfile"), "{refused}");

    let asked = directory.orders();
    assert_eq!(asked.iter().map(|asked| asked.status).collect::<Vec<_>>(), [Some(201), Some(400)]);
    assert_eq!(asked[0].names, ["one.example"]);
    assert_eq!(asked[0].profile.as_deref(), Some("shortlived"));
    assert_eq!(asked[0].replaces.as_deref(), Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"));
    assert!(asked[0].at <= asked[1].at, "{asked:?}");
}

#[test]
fn the_directory_says_when_to_renew_what_it_knows() {
    let Some(pebble) = Pebble::builder().start() else { return };
    let directory = Directory::before(&pebble);
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let info = RenewalInfo {
        start,
        end: start + Duration::from_secs(3600),
        explanation: Some("https://ca.example/why".to_owned()),
        retry_after: Some(Duration::from_secs(21_600)),
    };
    directory.set_renewal(Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"), info);
    let get = |url: &str| curl(&["-i", "--cacert", pebble.ca_file().to_str().unwrap(), url]);
    let Some(answer) = get(&directory.url()) else { return };
    let urls: Value = serde_json::from_str(&body(&answer)).unwrap();
    let renewal = urls["renewalInfo"].as_str().unwrap();

    let known = get(&format!("{renewal}/aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")).unwrap();
    let unknown = get(&format!("{renewal}/aYhba4dGQEHhs3uEe6CuLN4ByNQ.AA")).unwrap();

    assert_eq!(header(&known, "retry-after").as_deref(), Some("21600"), "{known}");
    assert_eq!(
        serde_json::from_str::<Value>(&body(&known)).unwrap(),
        json!({
            "suggestedWindow": { "start": "2027-01-15T08:00:00Z", "end": "2027-01-15T09:00:00Z" },
            "explanationURL": "https://ca.example/why",
        })
    );
    assert_eq!(status(&unknown), 404);
    assert_eq!(directory.renewals_asked().len(), 2);
    directory.offer_renewal_info(false);
    assert!(!get(&directory.url()).unwrap().contains("renewalInfo"));
}

#[test]
fn the_directory_fails_where_it_is_told_to() {
    let Some(pebble) = Pebble::builder().start() else { return };
    let directory = Directory::before(&pebble);
    let Some(mut account) = Account::new(&directory, pebble.ca_file()) else { return };
    let order = json!({ "identifiers": [{ "type": "dns", "value": "one.example" }] }).to_string();

    directory.fail(Resource::NewOrder, Failure::rate_limited(Duration::from_secs(90)));
    let limited = account.post("newOrder", &order);
    assert_eq!(status(&limited), 429);
    assert_eq!(header(&limited, "retry-after").as_deref(), Some("90"));
    assert!(limited.contains("urn:ietf:params:acme:error:rateLimited"), "{limited}");

    // With the nonce that came with the refusal.
    directory.heal();
    assert_eq!(status(&account.post("newOrder", &order)), 201);

    directory.fail(None, Failure::Status(503));
    assert_eq!(status(&account.post("newOrder", &order)), 503);
    directory.heal();
    directory.fail(Resource::Directory, Failure::Close);
    let closed = get(pebble.ca_file(), &directory.url()).unwrap();
    assert_eq!(closed.status.code(), Some(52), "an empty reply: {closed:?}");
    directory.heal();
    directory.fail(Resource::Directory, Failure::Hang);
    let hung = get(pebble.ca_file(), &directory.url()).unwrap();
    assert_eq!(hung.status.code(), Some(28), "no reply in time: {hung:?}");
    directory.heal();
    directory.set_clock_ahead(-3600);
    let late = String::from_utf8(get(pebble.ca_file(), &directory.url()).unwrap().stdout).unwrap();
    let date = httpdate::parse_http_date(&header(&late, "date").unwrap()).unwrap();
    assert!(date < SystemTime::now() - Duration::from_secs(3500), "{late}");
    assert_eq!(directory.requests(Resource::NewOrder).len(), 3);
}

fn get(ca: &Path, url: &str) -> Option<Output> {
    Some(run(Command::new(program("curl")?)
        .args(["-si", "--max-time", "1", "--noproxy", "*", "--cacert"])
        .arg(ca)
        .arg(url)))
}

/// An ACME account as far as these tests need one: it signs what it sends.
struct Account {
    key: EcdsaKeyPair,
    ca: String,
    urls: Value,
    id: Option<String>,
    nonce: String,
}

impl Account {
    /// Registers. `None` where curl is not installed.
    fn new(directory: &Directory, ca: &Path) -> Option<Self> {
        let ca = ca.to_str().unwrap().to_owned();
        let urls: Value = serde_json::from_str(&curl(&["--cacert", &ca, &directory.url()])?).unwrap();
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let answer = curl(&["-I", "--cacert", &ca, urls["newNonce"].as_str().unwrap()])?;
        let nonce = header(&answer, "replay-nonce").unwrap();
        let mut account = Self { key, ca, urls, id: None, nonce };
        let answer = account.post("newAccount", r#"{"termsOfServiceAgreed":true}"#);
        assert_eq!(status(&answer), 201, "{answer}");
        account.id = header(&answer, "location");
        Some(account)
    }

    /// Signs `payload` for `url`, or for the one that the directory has under this name, and answers what came.
    fn post(&mut self, url: &str, payload: &str) -> String {
        let url = self.urls[url].as_str().unwrap_or(url).to_owned();
        let mut protected = json!({ "alg": "ES256", "nonce": self.nonce, "url": url });
        if let Some(id) = &self.id {
            protected["kid"] = id.as_str().into();
        } else {
            let point = self.key.public_key().as_ref();
            let (x, y) = (BASE64URL_NOPAD.encode(&point[1..33]), BASE64URL_NOPAD.encode(&point[33..]));
            protected["jwk"] = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
        }
        let protected = BASE64URL_NOPAD.encode(protected.to_string().as_bytes());
        let payload = BASE64URL_NOPAD.encode(payload.as_bytes());
        let signed = self.key.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes()).unwrap();
        let signature = BASE64URL_NOPAD.encode(signed.as_ref());
        let jws = json!({ "protected": protected, "payload": payload, "signature": signature }).to_string();
        let kind = "Content-Type: application/jose+json";
        let answer = curl(&["-i", "--cacert", &self.ca, "-H", kind, "--data-binary", &jws, &url]).unwrap();
        if let Some(nonce) = header(&answer, "replay-nonce") {
            self.nonce = nonce;
        }
        answer
    }
}
