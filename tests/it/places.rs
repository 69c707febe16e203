//! Where certificates come from and go to besides the authority: hooks, files of other programs, certbot's folders.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    ordering::{Ports, certificates, https, mode, order_of, wait_for_certificate},
    support::{
        Backend, Peer,
        clients::run,
        ok,
        pebble::Pebble,
        program,
        served::{self, Served},
        status, wait_for,
    },
};

/// A program of root's in `folder`.
fn script(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A site whose certificate is ordered; `more` are keys of `tls`.
fn site(ports: &Ports, backend: &Backend, pebble: &Pebble, more: &str) -> String {
    let storage = "  storage: '{dir}/storage'\n";
    ports.site(backend, pebble, "site.example", "").replace(storage, &format!("{storage}{more}\n"))
}

#[test]
fn a_wildcard_is_proved_by_the_command_for_dns_records() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let folder = served::folder();
    // Two records of one name, as for `*.site.example` and `site.example`, are values of one set.
    let post = format!("curl -sf http://{}/$1 --data \"{{\\\"host\\\": \\\"$2.\\\" $3}}\"", pebble.management());
    script(
        folder.path(),
        "hook",
        &format!(
            "send() {{ {post}; }}\n\
             test \"$1 $2 $3\" = \"$VESTIBULE_DNS_ACTION $VESTIBULE_DNS_NAME $VESTIBULE_DNS_VALUE\" || exit 3\n\
             test \"$2 $3\" = \"_acme-challenge.$CERTBOT_DOMAIN $CERTBOT_VALIDATION\" || exit 4\n\
             case $1 in\n\
             present) send set-txt \"$2\" \", \\\"value\\\": \\\"$3\\\"\" && echo \"made $3\" ;;\n\
             cleanup) test \"$CERTBOT_AUTH_OUTPUT\" = \"made $3\" || exit 5; send clear-txt \"$2\" && echo \"removed $3\" ;;\n\
             esac"
        ),
    );
    let hook = ", dns_hook: ['{dir}/hook']";

    let served =
        Served::start_in(folder, &ports.site(&backend, &pebble, "'*.site.example', site.example", hook), |_| {});

    wait_for_certificate(&served, &ports, "a.site.example", &pebble);
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the state to be told", || order_of(&served, 0)["state"] == "issued");
    let events = served.events();
    for said in [": made ", ": removed "] {
        assert_eq!(events.matches(said).count(), 2, "{said}\n{events}");
    }
    assert!(!events.contains("was not removed"), "{events}");
}

#[test]
fn what_a_command_for_dns_records_says_of_its_failure_is_told() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let folder = served::folder();
    script(folder.path(), "hook", "echo 'the key of the provider has expired' >&2; exit 1");
    let hook = ", dns_hook: ['{dir}/hook']";

    let served = Served::start_in(folder, &ports.site(&backend, &pebble, "'*.site.example'", hook), |_| {});

    wait_for("the failure to be told", || order_of(&served, 0)["state"] == "failing");
    let why = order_of(&served, 0)["why"].as_str().unwrap().to_owned();
    assert!(why.contains("hook` failed, exit status: 1: the key of the provider has expired"), "{why}");
}

#[test]
fn a_certificate_is_written_as_certbot_does_and_for_a_program_of_its_own_user() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let files = "{ certificate: '{dir}/exim.crt', key: '{dir}/exim.key', group: daemon, mode: 0640 }";
    let export = format!("  export: {{ folder: '{{dir}}/letsencrypt', files: [{files}] }}");

    let served = Served::start(&site(&ports, &backend, &pebble, &export));

    wait_for("the files", || served.events().contains("certificate exported"));
    let live = served.path("letsencrypt/live/site.example");
    let verified = run(Command::new("openssl")
        .args(["x509", "-noout", "-checkhost", "site.example", "-in"])
        .arg(live.join("cert.pem")));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("does match"), "{verified:?}");
    fs::write(served.path("root.pem"), pebble.root()).unwrap();
    let verified = run(Command::new("openssl")
        .args(["verify", "-CAfile"])
        .arg(served.path("root.pem"))
        .arg("-untrusted")
        .arg(live.join("chain.pem"))
        .arg(live.join("cert.pem")));
    assert!(verified.status.success(), "{verified:?}");
    assert_eq!(mode(&live.join("privkey.pem")), 0o600);
    assert_eq!(fs::read(served.path("exim.crt")).unwrap(), fs::read(live.join("fullchain.pem")).unwrap());
    let key = served.path("exim.key");
    assert_eq!(fs::read(&key).unwrap(), fs::read(live.join("privkey.pem")).unwrap());
    assert_eq!(mode(&key), 0o640);
    if rustix::process::geteuid().is_root() {
        let group = run(Command::new("stat").args(["-c", "%U:%G"]).arg(&key));
        assert_eq!(String::from_utf8_lossy(&group.stdout), "root:daemon\n");
    }

    // What is lost is written again, when asked and at the next start; what is there is left alone.
    fs::remove_file(&key).unwrap();
    let said = certificates(&served, "export");
    assert!(said.contains("exim.key written") && !said.contains("live"), "{said}");
    assert_eq!(certificates(&served, "export"), "site.example: everything is as it is to be\n");
    let inode = fs::metadata(&key).unwrap().ino();
    fs::remove_file(live.join("fullchain.pem")).unwrap();
    let served = Served::start_in(served.into_folder(), &site(&ports, &backend, &pebble, &export), |_| {});
    wait_for("the files", || served.path("letsencrypt/live/site.example/fullchain.pem").exists());
    assert_eq!(fs::metadata(served.path("exim.key")).unwrap().ino(), inode);
}

#[test]
fn commands_are_run_once_for_each_certificate_and_what_they_say_is_logged() {
    let ports = Ports::free();
    // So short that it is renewed again and again.
    let Some(pebble) = ports.pebble().validity(Duration::from_secs(9)).start() else { return };
    let backend = ok();
    let folder = served::folder();
    let said = "echo \"for $RENEWED_DOMAINS in $RENEWED_LINEAGE of $VESTIBULE_HOST\"";
    script(folder.path(), "deploy", &format!("cat $RENEWED_LINEAGE/cert.pem >> {}/deployed.pem; {said}", "$1"));
    let more = "  export: { folder: '{dir}/letsencrypt' }\n  deploy: [{ command: ['{dir}/deploy', '{dir}'] }]";

    let served = Served::start_in(folder, &site(&ports, &backend, &pebble, more), |_| {});

    wait_for("a renewal", || served.events().matches("certificate deployed").count() >= 2);
    let lineage = served.path("letsencrypt/live/site.example");
    let line = format!("for site.example in {} of site.example", lineage.display());
    assert!(served.events().contains(&line), "{}", served.events());
    let deployed = fs::read_to_string(served.path("deployed.pem")).unwrap();
    let mut seen: Vec<_> = deployed.split("-----END CERTIFICATE-----").map(str::trim).collect();
    seen.pop();
    let count = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), count, "each of them once");
}

#[test]
fn a_start_runs_no_command_again_and_the_word_of_an_operator_does() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let folder = served::folder();
    script(folder.path(), "deploy", "echo deployed >> $1/deployed");
    let configuration = site(&ports, &backend, &pebble, "  deploy: [{ command: ['{dir}/deploy', '{dir}'] }]");
    let served = Served::start_in(folder, &configuration, |_| {});
    wait_for("the command", || served.events().contains("certificate deployed"));

    let served = Served::start_in(served.into_folder(), &configuration, |_| {});
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    assert_eq!(served.log("deployed"), "deployed\n");

    let said = certificates(&served, "export");
    assert!(said.ends_with("/deploy` has run\n"), "{said}");
    assert_eq!(served.log("deployed"), "deployed\ndeployed\n");
}

#[test]
fn a_command_that_hangs_is_ended_and_nothing_else_waits_for_it() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let deploy = "  deploy: [{ command: [sh, -c, 'sleep 1000'], timeout: 1s }, { command: [echo, still run] }]";

    let served = Served::start(&site(&ports, &backend, &pebble, deploy));

    wait_for_certificate(&served, &ports, "site.example", &pebble);
    wait_for("the failure to be told", || order_of(&served, 0)["undeployed"].is_string());
    let why = order_of(&served, 0)["undeployed"].as_str().unwrap().to_owned();
    assert_eq!(why, "site.example: `sh` did not end within 1s and was ended");
    assert!(served.order(&["status"]).contains(&format!("NOT DEPLOYED: {why}")));
    assert!(served.events().contains("still run"), "{}", served.events());
    let refused = served.ask("admin.sock", "POST", "/export");
    assert!(refused.contains("did not end within 1s"), "{refused}");
}

#[test]
fn an_upgrade_waits_for_a_command() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let deploy = "  deploy: [{ command: [sh, -c, 'touch {dir}/begun; while [ ! -e {dir}/go ]; do sleep 0.05; done; echo over'] }]";
    let served = Served::start(&site(&ports, &backend, &pebble, deploy));
    wait_for("the command", || served.path("begun").exists());

    served.signal("USR2");
    wait_for_certificate(&served, &ports, "site.example", &pebble);
    assert!(!served.events().contains("upgraded"));
    fs::write(served.path("go"), "").unwrap();

    wait_for("the upgrade", || served.events().contains("upgraded"));
    let events = served.events();
    assert!(events.find("certificate deployed").unwrap() < events.find("takes over").unwrap(), "{events}");
}

#[test]
fn what_is_in_the_way_of_an_export_is_told() {
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    let folder = served::folder();
    fs::create_dir_all(folder.path().join("letsencrypt/renewal")).unwrap();
    fs::write(folder.path().join("letsencrypt/renewal/site.example.conf"), "").unwrap();
    let more = "  export: { folder: '{dir}/letsencrypt' }\n  deploy: [{ command: [touch, '{dir}/deployed'] }]";

    let served = Served::start_in(folder, &site(&ports, &backend, &pebble, more), |_| {});

    wait_for("the fault to be told", || order_of(&served, 0)["undeployed"].is_string());
    assert!(order_of(&served, 0)["undeployed"].as_str().unwrap().contains("certbot renews site.example there"));
    assert!(!served.path("letsencrypt/live").exists() && !served.path("deployed").exists());

    fs::remove_file(served.path("letsencrypt/renewal/site.example.conf")).unwrap();
    certificates(&served, "export");
    assert!(served.path("letsencrypt/live/site.example/fullchain.pem").exists() && served.path("deployed").exists());
    assert!(order_of(&served, 0)["undeployed"].is_null());
}

/// A site that imports from certbot's folder in `{dir}`, or from an archive of it, and what is in the folder.
fn imported(source: &str) -> Option<(Served, Ports, Pebble, Backend)> {
    let ports = Ports::free();
    // What came of an order of before, brought to certbot's folder by ourselves.
    let pebble = ports.pebble().validity(Duration::from_secs(3600)).start()?;
    let backend = ok();
    let export = site(&ports, &backend, &pebble, "  export: { folder: '{dir}/etc/letsencrypt' }");
    let folder = served::folder();
    fs::create_dir(folder.path().join("etc")).unwrap();
    let served = Served::start_in(folder, &export, |_| {});
    wait_for("the files", || served.events().contains("certificate exported"));
    let folder = served.into_folder();
    // As docassemble does for its backup.
    let packed =
        run(Command::new("tar").args(["-zcf", "letsencrypt.tar.gz", "etc/letsencrypt"]).current_dir(folder.path()));
    assert!(packed.status.success(), "{packed:?}");
    fs::remove_dir_all(folder.path().join("storage")).unwrap();
    let import = site(&ports, &backend, &pebble, &format!("  import: ['{{dir}}/{source}']"));
    let served = Served::start_in(folder, &import, |_| {});
    Some((served, ports, pebble, backend))
}

#[test]
fn what_certbot_has_is_served_from_the_first_request_on_and_no_authority_is_asked() {
    for source in ["etc/letsencrypt", "letsencrypt.tar.gz"] {
        let Some((served, ports, pebble, _backend)) = imported(source) else { return };

        let root = pebble.root_certificate();
        let answer = https(ports.tls(), "site.example", &root).unwrap();
        assert_eq!(status(&answer), 200, "{source}: {answer}");
        wait_for("the state to be told", || order_of(&served, 0)["state"] == "issued");
        assert!(served.events().contains("certificate imported"), "{}", served.events());
        assert_eq!(pebble.log().matches("Issued certificate").count(), 1, "{source}");

        // It is ours from now on, and can be renewed.
        certificates(&served, "renew");
        wait_for("another one", || pebble.log().matches("Issued certificate").count() == 2);
    }
}

#[test]
fn exim_speaks_tls_with_the_certificate_that_was_exported() {
    let Some(exim) = program("exim4") else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a mail server is started as root");
        return;
    }
    let ports = Ports::free();
    let Some(pebble) = ports.pebble().start() else { return };
    let backend = ok();
    // As in /etc/exim4 of docassemble.
    let files = "{ certificate: '{dir}/exim.crt', key: '{dir}/exim.key', group: Debian-exim, mode: 0640 }";
    let more = format!("  export: {{ folder: null, files: [{files}] }}");
    let served = Served::start(&site(&ports, &backend, &pebble, &more));
    wait_for("the files", || served.events().contains("certificate exported"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = served.folder.path().display();
    let configuration = format!(
        "primary_hostname = site.example\nspool_directory = {dir}/mail\nlog_file_path = {dir}/mail/%slog\n\
         pid_file_path = {dir}/mail/pid\nexim_user = Debian-exim\nexim_group = Debian-exim\nkeep_environment =\n\
         local_interfaces = 127.0.0.1\ndaemon_smtp_ports = {port}\ntls_advertise_hosts = *\n\
         tls_certificate = {dir}/exim.crt\ntls_privatekey = {dir}/exim.key\n"
    );
    fs::write(served.path("exim.conf"), configuration).unwrap();
    fs::create_dir(served.path("mail")).unwrap();
    run(Command::new("chown").arg("Debian-exim:Debian-exim").arg(served.path("mail")));
    let arguments = ["-bdf", "-C", &format!("{dir}/exim.conf")];
    let _exim = Peer::start(Command::new(exim).args(arguments), &served.path("exim.log"));
    wait_for("the mail server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    fs::write(served.path("root.pem"), pebble.root()).unwrap();

    let said = run(Command::new("openssl")
        .args(["s_client", "-starttls", "smtp", "-connect", &format!("127.0.0.1:{port}"), "-verify_return_error"])
        .args(["-verify_hostname", "site.example", "-CAfile"])
        .arg(served.path("root.pem"))
        .stdin(Stdio::null()));

    let log = ["exim.log", "mail/mainlog", "mail/paniclog"].map(|name| served.log(name)).concat();
    let answer = String::from_utf8_lossy(&said.stdout);
    assert!(answer.contains("Verification: OK"), "{answer}{}\n{log}", String::from_utf8_lossy(&said.stderr));
    assert!(answer.contains("Verified peername: site.example"), "{answer}");
}
