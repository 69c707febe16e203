//! Where docassemble's configuration is read, by whom, and what becomes of one that cannot be.

use std::{fs, os::unix::fs::symlink, process::Command};

use super::{
    super::support::{Backend, body, header, network::in_network, ok, raw, served::folder, status, wait_for},
    Site,
};

fn vestibule(arguments: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_vestibule")).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (said, output.status.code())
}

fn get(port: u16, path: &str) -> String {
    raw(([127, 0, 0, 1], port).into(), format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"))
}

fn to(backend: &Backend) -> String {
    format!("upstreams: {{ app: {{ protocol: http, endpoints: ['{}'] }} }}\n", backend.address)
}

#[test]
fn the_ports_and_prefixes_are_those_of_config_yml_and_change_with_it() {
    in_network(|| {
        let backend = ok();
        let site = Site::start("root: /da/\n", &to(&backend));
        assert_eq!(status(&get(80, "/da/x")), 200);
        assert_eq!(status(&get(80, "/x")), 404);

        site.configure("root: /\nhttp port: 8000\nuse https: True\nexternal hostname: a.example\n");
        wait_for("the change to be seen", || site.served.generation() == 2);
        let answer = get(8000, "/x?y=%2F");
        assert_eq!((status(&answer), header(&answer, "location").as_deref()), (301, Some("https://a.example/x?y=%2F")));

        let said = site.reload("root: /\n");
        assert!(said.contains("in force"), "{said}");
        assert_eq!(status(&get(80, "/x")), 200);
    });
}

#[test]
fn without_a_config_yml_the_environment_says_it_until_there_is_one() {
    in_network(|| {
        let backend = ok();
        let variables = [
            ("DAHOSTNAME", "a.example"),
            ("USEHTTPS", "True"),
            ("POSTURLROOT", "/da/"),
            ("USENGINXTOSERVEFILES", "false"),
        ];
        let site = Site::start_with(None, &to(&backend), &variables);
        let events = site.served.events();
        assert!(events.contains("environment: USEHTTPS: `True` is taken for true; write `true`"), "{events}");
        assert_eq!(header(&get(80, "/da/"), "location").as_deref(), Some("https://a.example/da/"));

        site.configure("external hostname: a.example\nroot: /da/\n");
        wait_for("the new file to be seen", || status(&get(80, "/da/")) == 200);
    });
}

#[test]
fn a_malformed_file_is_refused_with_its_place_and_at_reload_changes_nothing() {
    in_network(|| {
        let backend = ok();
        let site = Site::start("root: /\nsecretkey: s3cr3t\n", &to(&backend));
        site.configure("root: /da/\n  nonsense: [\n");
        wait_for("the refusal", || site.served.status()["processes"]["refused"].is_object());
        let refused = site.served.status()["processes"]["refused"]["faults"].to_string();
        assert!(refused.contains("da/config.yml:2:"), "{refused}");
        assert_eq!(status(&get(80, "/x")), 200, "as it was");
        assert!(!site.served.run(&["reload"]).status.success());

        site.configure("");
        wait_for("the refusal of nothing", || {
            site.served.status()["processes"]["refused"]["faults"].to_string().contains("nothing is written in it")
        });
        assert_eq!(status(&get(80, "/x")), 200, "as it was");
        site.configure("root: /da/\n  nonsense: [\n");

        let broken = site.served.path("da/config.yml");
        let (said, code) = vestibule(&["check", "--docassemble", broken.to_str().unwrap()]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.starts_with(&format!("{}:2:", broken.display())), "{said}");
        let (said, code) = vestibule(&["serve", "--docassemble", broken.to_str().unwrap()]);
        assert_eq!(code, Some(78), "{said}");

        site.reload("root: /\n");
        assert!(site.served.status()["processes"]["refused"].is_null());
    });
}

#[test]
fn root_reads_nothing_by_it_that_the_application_could_not() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder();
    let secret = folder.path().join("secret");
    fs::write(&secret, "external hostname: s3cr3t.example\nroot: s3cr3t\n").unwrap();
    Command::new("chmod").arg("0600").arg(&secret).status().unwrap();
    symlink(&secret, folder.path().join("config.yml")).unwrap();

    let (said, code) = vestibule(&["check", "--docassemble", folder.path().join("config.yml").to_str().unwrap()]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("Permission denied") && !said.contains("s3cr3t"), "{said}");

    let pipe = folder.path().join("pipe.yml");
    Command::new("mkfifo").arg("-m").arg("0666").arg(&pipe).status().unwrap();
    let (said, code) = vestibule(&["check", "--docassemble", pipe.to_str().unwrap()]);
    assert_eq!((said.contains("it is no file"), code), (true, Some(78)), "{said}");
}

#[test]
fn explain_and_check_say_what_config_yml_means_and_what_is_odd_in_it() {
    let folder = folder();
    let file = folder.path().join("config.yml");
    fs::write(&file, "root: /da\nuse https: yes\nexternal hostname: justice.example.com\nsecretkey: s3cr3t\n").unwrap();
    let file = file.to_str().unwrap();

    let (said, code) = vestibule(&["explain", "--docassemble", file]);
    assert_eq!(code, Some(0), "{said}");
    for line in [
        ":80: every request is answered with a redirect to https://justice.example.com\n",
        "  /da/ws and all below /da/ws/ goes to `websockets`\n    which sees the path without /da/ws\n",
        "  `app` speaks the uwsgi protocol at unix:/var/run/uwsgi/docassemble.sock\n",
        &format!("\nWarnings\n  {file}:1:7: root: write `/da/`: docassemble needs the slash at the end\n"),
    ] {
        assert!(said.contains(line), "{line:?} is missing:\n{said}");
    }
    assert!(!said.contains("s3cr3t"));

    let (said, code) = vestibule(&["explain", "--outer", "apache", "--docassemble", file]);
    assert!(code == Some(0) && said.contains("<Location \"/da\">"), "{said}");
}

#[test]
fn what_is_kept_elsewhere_is_refused_where_docassemble_cannot_be_asked() {
    let folder = folder();
    let file = folder.path().join("config.yml");
    fs::write(&file, "a: b\nconfig from: arn:aws:secretsmanager:us-east-1:1:secret:x\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["check", "--docassemble"])
        .arg(&file)
        .env("DA_PYTHON", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("config.yml:2:14: config from: takes settings from elsewhere"), "{said}");
    assert!(said.contains("there is no docassemble on this machine") && said.contains("DA_PYTHON"), "{said}");
}

#[test]
fn a_rollback_goes_back_to_what_config_yml_said() {
    in_network(|| {
        let backend = ok();
        let site = Site::start("root: /one/\n", &to(&backend));
        site.reload("root: /two/\n");
        assert_eq!((status(&get(80, "/one/")), status(&get(80, "/two/"))), (404, 200));

        let said = site.served.order(&["rollback"]);
        assert!(said.contains("in force") && said.contains("config.yml was not touched"), "{said}");
        assert_eq!((status(&get(80, "/one/")), status(&get(80, "/two/"))), (200, 404));
        assert_eq!(body(&get(80, "/one/")), "ok");
    });
}

#[test]
fn root_opens_no_certificate_where_the_application_may_put_what_it_likes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder();
    let certificates = folder.path().join("certs");
    fs::create_dir(&certificates).unwrap();
    Command::new("mkfifo").arg(certificates.join("nginx.crt")).status().unwrap();
    fs::write(certificates.join("nginx.key"), "").unwrap();
    std::os::unix::fs::chown(&certificates, Some(super::www_data()), None).unwrap();
    let file = folder.path().join("config.yml");
    let text =
        format!("use https: True\nexternal hostname: a.example\ncert install directory: {}\n", certificates.display());
    fs::write(&file, text).unwrap();

    // Were it opened, this would wait for ever.
    let mut command = Command::new("timeout");
    command
        .arg("10")
        .arg(env!("CARGO_BIN_EXE_vestibule"))
        .args(["explain", "--docassemble"])
        .arg(&file)
        .env("DA_ROOT", folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("nginx.crt is not used:") && said.contains("self-signed"), "{said}");
}
