//! Where certificates come from and go to besides the authority: hooks, files of other programs, certbot's folders.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{
    ordering::{Ports, order_of, wait_for_certificate},
    support::{
        ok,
        served::{self, Served},
        wait_for,
    },
};

/// A program of root's in `folder`.
fn script(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
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
