//! Certificates of the operator's own in a bucket: real processes, moto as S3, Azurite as Azure.

use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use vestibule::{
    config::{SharedStoragePlan, StorePlan},
    tls::{
        Roots, SecretBytes,
        storage::{Access, Storage},
    },
};

use super::support::{
    azurite::Azurite,
    clients::{block_on, client, run, tls_connect},
    moto::Moto,
    patiently,
    served::{self, Served},
};

/// Where docassemble has its certificates.
fn certs(shared: SharedStoragePlan) -> StorePlan {
    StorePlan { prefix: "certs".to_owned(), ..shared.store }
}

/// docassemble's side of `plan`.
fn bucket(plan: &StorePlan) -> Storage {
    let access = Access::read_unsealed(plan, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
    Storage::shared(&access, &Roots::of_the_system()).unwrap()
}

fn put(bucket: &Storage, name: &str, content: &str) {
    block_on(bucket.write(name, SecretBytes::new(content.as_bytes().to_vec()))).unwrap();
}

fn configuration(plan: &StorePlan, options: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0', tls: true }}]\nhost: site.example\n\
         tls: {{ storage: '{{dir}}/storage', storage_options: {{ {options} }}, certificates: [{{ fetch: '{plan}' }}] }}\n\
         upstreams: {{ app: {{ endpoints: ['127.0.0.1:1'] }} }}\nroutes: [{{ prefix: /, upstream: app }}]\n"
    )
}

/// A self-signed one, its key, and what a client believes.
fn pair() -> (String, String, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().clone())
}

fn is_served(served: &Served, root: &CertificateDer<'static>) -> bool {
    block_on(tls_connect(served.address(0), "site.example", client(&[root], &["http/1.1"]))).is_ok()
}

fn certificates(served: &Served, verb: &str) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    run(command.args(["certificates", verb, "--config"]).arg(served.path("vestibule.yml")))
}

fn renew(served: &Served) {
    let renewal = certificates(served, "renew");
    assert!(renewal.status.success(), "{renewal:?}\n{}", served.events());
}

fn report(served: &Served) -> Value {
    served.status()["processes"]["orders"][0].clone()
}

/// From the first start to one without the store, which is ended by `end`.
fn a_pair_is_served_until_another_one_is_whole(plan: &StorePlan, options: &str, end: impl FnOnce()) {
    let (bucket, configuration) = (bucket(plan), configuration(plan, options));
    let ((certificate, key, first), (next_certificate, next_key, next)) = (pair(), pair());
    put(&bucket, "nginx.crt", &certificate);
    put(&bucket, "nginx.key", &key);

    let served = Served::start(&configuration);
    patiently("the pair to be served", || is_served(&served, &first));
    patiently("that to be told", || report(&served)["state"] == "issued");
    let listed = String::from_utf8(certificates(&served, "list").stdout).unwrap();
    assert!(listed.contains(&format!("site.example: fetched from {plan}, looked at again at ")), "{listed}");

    put(&bucket, "nginx.crt", &next_certificate);
    renew(&served);
    patiently("half a pair to be told", || report(&served)["state"] == "failing");
    let why = report(&served)["why"].as_str().unwrap().to_owned();
    assert!(why.contains("nginx.key"), "{why}");
    renew(&served);
    patiently("another look", || report(&served)["failures"] == 2);
    assert!(is_served(&served, &first));
    assert_eq!(served.events().matches("no certificate could be fetched").count(), 1, "{}", served.events());

    put(&bucket, "nginx.key", &next_key);
    renew(&served);
    patiently("the next pair to be served", || is_served(&served, &next));

    end();
    let served = Served::start_in(served.into_folder(), &configuration, |_| {});
    assert!(is_served(&served, &next), "{}", served.events());
    patiently("the outage to be told", || report(&served)["state"] == "failing");
    assert!(is_served(&served, &next));
    assert_eq!(report(&served)["hosts"][0], "site.example");
}

#[test]
fn a_pair_at_s3_is_served_until_another_one_is_whole() {
    let folder = served::folder();
    let Some(moto) = Moto::start(folder.path()) else { return };
    let plan = certs(moto.plan(folder.path(), ""));
    let options = moto.options(&plan);

    a_pair_is_served_until_another_one_is_whole(&plan, &options, || drop(moto));
}

#[test]
fn a_pair_at_azure_is_served_until_another_one_is_whole() {
    let folder = served::folder();
    let Some(azurite) = Azurite::start(folder.path()) else { return };
    let plan = certs(azurite.plan(folder.path(), ""));
    let options = azurite.options(&plan);

    a_pair_is_served_until_another_one_is_whole(&plan, &options, || drop(azurite));
}

#[test]
fn an_empty_bucket_is_told_and_apache_s_names_are_served_with_their_chain() {
    let folder = served::folder();
    let Some(moto) = Moto::start(folder.path()) else { return };
    let plan = certs(moto.plan(folder.path(), ""));
    let bucket = bucket(&plan);
    let authority = |name: &str| {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let ((root, root_key), (intermediate, intermediate_key)) = (authority("root"), authority("intermediate"));
    let root = CertifiedIssuer::self_signed(root, root_key).unwrap();
    let intermediate = CertifiedIssuer::signed_by(intermediate, intermediate_key, &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["site.example".to_owned()]).unwrap().signed_by(&key, &intermediate).unwrap();

    let served = Served::start(&configuration(&plan, &moto.options(&plan)));
    patiently("the want to be told", || report(&served)["state"] == "failing");
    let checked = certificates(&served, "check");
    let said = format!("{checked:?}");
    assert!(!checked.status.success() && said.contains("neither nginx.crt and nginx.key nor apache.crt"), "{said}");
    // Half of what comes first is not in the way.
    put(&bucket, "nginx.crt", &pair().0);
    put(&bucket, "apache.crt", &leaf.pem());
    put(&bucket, "apache.key", &key.serialize_pem());
    put(&bucket, "apache.ca.pem", &intermediate.pem());
    renew(&served);

    patiently("the pair to be served with its chain", || is_served(&served, &root.der().clone()));
}
