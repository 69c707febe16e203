//! `check` and `explain` of the built binary, the examples, and the schema that editors use.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{
    env, fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;
use vestibule::config;

fn vestibule(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(arguments)
        .env("DAHOSTNAME", "justice.example.com")
        .env("SERVERADMIN", "webmaster@justice.example.com")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// A file `v.yml` of `text` in a folder of its own.
fn written(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("v.yml");
    fs::write(&file, text).unwrap();
    let name = file.to_str().unwrap().to_owned();
    (folder, name)
}

const EXAMPLES: [&str; 4] = ["vestibule.yml", "front-door.yml", "behind-load-balancer.yml", "alongside-apache.yml"];

#[test]
fn check_accepts_every_example_without_a_word() {
    for name in EXAMPLES {
        // Not everybody who runs the tests may write in /var/lib.
        let text = fs::read_to_string(example(name)).unwrap().replace("storage: /var/lib/vestibule", "storage: kept");
        let (_folder, file) = written(&text);
        let output = vestibule(&["check", "--config", &file]);

        assert_eq!((stdout(&output), stderr(&output)), (String::new(), String::new()), "{name}");
        assert_eq!(output.status.code(), Some(0), "{name}");
    }
}

#[test]
fn every_example_tells_an_editor_where_the_schema_is() {
    for name in EXAMPLES {
        let text = fs::read_to_string(example(name)).unwrap();

        assert!(text.starts_with("# yaml-language-server: $schema=schema.json\n"), "{name}");
    }
}

#[test]
fn check_prints_every_fault_with_its_place_and_exits_78() {
    let (_folder, file) = written("listeners: [{ address: '80' }]\nroutes: [{ prefix: /, upstream: wev }]\nhots: a\n");

    let output = vestibule(&["check", "--config", &file]);

    assert_eq!(
        stdout(&output),
        format!(
            "{file}:1:24: listeners[0].address: write `[::]:80` for port 80 on every address\n\
             {file}:2:33: routes[0].upstream: no upstream is named `wev`\n\
             {file}:3:1: hots: unknown key `hots`; did you mean `host`?\n"
        )
    );
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn an_example_is_nobodys_site_until_it_is_told_whose() {
    for name in ["front-door.yml", "behind-load-balancer.yml"] {
        let output = Command::new(env!("CARGO_BIN_EXE_vestibule"))
            .args(["check", "--config"])
            .arg(example(name))
            .env_remove("DAHOSTNAME")
            .output()
            .unwrap();

        let said = stdout(&output);
        assert!(said.contains(": host: the environment variable `DAHOSTNAME` is not set; set it"), "{name}: {said}");
        assert_eq!(output.status.code(), Some(78), "{name}");
    }
}

#[test]
fn a_log_template_is_checked_before_it_is_served_with() {
    for (format, problem) in [
        ("{statis}", "no log field is named `statis`; did you mean `status`?"),
        ("{status", "the `{` at byte 0 is not closed; a brace itself is written `{{`"),
    ] {
        let (_folder, file) = written(&format!("{PLAIN}access_log: {{ format: '{format}' }}\n"));

        for (verb, said) in [("check", stdout as fn(&Output) -> String), ("serve", stderr)] {
            let output = vestibule(&[verb, "--config", &file]);

            assert_eq!(said(&output), format!("{file}:4:23: access_log.format: {problem}\n"), "{verb}");
            assert_eq!(output.status.code(), Some(78), "{verb}");
        }
    }
}

#[test]
fn a_log_field_that_is_like_no_other_is_answered_with_all_of_them() {
    let (_folder, file) = written(&format!("{PLAIN}access_log: {{ format: '{{foo}}' }}\n"));

    let said = stdout(&vestibule(&["check", "--config", &file]));

    assert!(said.contains("no log field is named `foo`; there are time, time_common, request_id, "), "{said}");
}

#[test]
fn a_folder_that_may_not_be_written_in_is_told_with_the_user() {
    let (folder, file) = written(&format!("{PLAIN}spool: {{ path: . }}\n"));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_vestibule"));
    check.args(["check", "--config", &file]);
    // Root may write everywhere; this is the user of nobody on every Linux.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if root {
        check.uid(65534);
    }

    let output = match check.output() {
        // The folder of the build is its owner's alone.
        Err(error) if root && error.kind() == io::ErrorKind::PermissionDenied => return,
        output => output.unwrap(),
    };

    let said = stdout(&output);
    let here = folder.path().display();
    assert!(said.starts_with(&format!("{file}:4:16: spool.path: ")), "{said}");
    assert!(
        said.ends_with(&format!(", who this runs as, cannot write in {here}/.; let it, or name another place\n")),
        "{said}"
    );
    assert!(!root || said.contains(": nobody, "), "{said}");
    assert_eq!(output.status.code(), Some(78));
}

const PLAIN: &str = "listeners: [{ address: '[::]:80' }]\n\
    upstreams: { app: { endpoints: ['127.0.0.1:8000'] } }\n\
    routes: [{ prefix: /, upstream: app }]\n";

const LEAST: &str = "listeners: [{ address: '[::]:443', tls: true }]\n\
    upstreams: { app: { endpoints: ['127.0.0.1:8000'] } }\n\
    routes: [{ prefix: /, upstream: app }]\n";

#[test]
fn check_looks_into_the_files_that_are_named() {
    let certified = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let certificates = "tls:\n  certificates:\n    - files:\n        certificate: site.crt\n        key: site.key\n";
    let (folder, file) = written(&format!("{LEAST}{certificates}        chain: chain.pem\n"));
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let shown = |name: &str| folder.path().join(name).display().to_string();

    put("site.crt", &certified.cert.pem());
    put("site.key", &certified.cert.pem());
    let wrong = vestibule(&["check", "--config", &file]);
    put("site.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    put("chain.pem", "nothing");
    let encrypted = vestibule(&["check", "--config", &file]);
    put("site.key", &certified.signing_key.serialize_pem());
    put("chain.pem", &certified.cert.pem());
    let right = vestibule(&["check", "--config", &file]);

    let at = "tls.certificates[0].files";
    assert_eq!(
        stdout(&wrong),
        format!("{file}:9:16: {at}.chain: cannot read {}: there is no such file\n", shown("chain.pem"),)
    );
    assert_eq!(
        stdout(&encrypted),
        format!(
            "{file}:8:14: {at}.key: the key {key} is encrypted, and nobody is there to type its password; decrypt it: \
             openssl pkey -in {key} -out {key}.plain\n\
             {file}:9:16: {at}.chain: there is no certificate in {}; PEM with `BEGIN CERTIFICATE` is expected\n",
            shown("chain.pem"),
            key = shown("site.key"),
        )
    );
    assert_eq!((stdout(&right), right.status.code()), (String::new(), Some(0)));
}

#[test]
fn a_file_that_is_not_there_is_refused_and_named() {
    let output = vestibule(&["check", "--config", "/nowhere/v.yml"]);

    assert_eq!(stdout(&output), "cannot read /nowhere/v.yml: No such file or directory (os error 2)\n");
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let (_folder, file) = written("");
    fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();

    let output = vestibule(&["check", "--config", &file]);

    assert_eq!(stdout(&output), format!("cannot read {file}: stream did not contain valid UTF-8\n"));
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn each_other_verb_refuses_a_faulty_configuration_on_standard_error() {
    let (_folder, file) = written(&format!("{LEAST}drain: soon\n"));

    for verb in ["serve", "explain", "status"] {
        let output = vestibule(&[verb, "--config", &file]);

        assert_eq!(
            stderr(&output),
            format!("{file}:4:8: drain: expected a time such as `30s`, found `soon`\n"),
            "{verb}"
        );
        assert_eq!((stdout(&output), output.status.code()), (String::new(), Some(78)), "{verb}");
    }
}

#[test]
fn a_bad_command_line_exits_2() {
    for arguments in [&[][..], &["fly"], &["check", "--colour"], &["explain", "--outer", "iis"]] {
        assert_eq!(vestibule(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_help_names_only_what_works() {
    let output = vestibule(&["--help"]);

    let help = stdout(&output);
    for verb in ["serve", "demo", "status", "reload", "rollback", "drain", "upgrade", "restart", "check", "explain"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is missing:\n{help}");
    }
    for later in ["docassemble-settings", "backend-", "import", "worker", "takeover"] {
        assert!(!help.contains(later), "{later} is promised:\n{help}");
    }
}

#[test]
fn the_help_of_serve_names_what_it_reads_of_the_environment() {
    let help = stdout(&vestibule(&["serve", "--help"]));

    for name in ["VESTIBULE_LOG ", "RUST_LOG ", "VESTIBULE_LOG_FORMAT "] {
        assert!(help.contains(&format!("\n  {name}")), "{name}is missing:\n{help}");
    }
}

#[test]
fn explain_says_what_each_part_does() {
    let output = vestibule(&["explain", "--config", example("front-door.yml").to_str().unwrap()]);

    let text = stdout(&output);
    for line in [
        "  [::]:80: every request is answered with a redirect to https://justice.example.com\n",
        "  [::]:443: https (HTTP/2 and HTTP/1.1)\n",
        "  but not where every request is redirected (see above): ask for it elsewhere\n",
        "  /ws and all below /ws/ goes to `websockets`\n    which sees the path without /ws\n",
        "    it may have files sent from /usr, /tmp (X-Sendfile; X-Accel-Redirect after /xaccel/)\n",
        "  `app` speaks the uwsgi protocol at unix:/var/run/uwsgi/docassemble.sock\n",
        "    6 requests inside at once; 512 more may wait, up to 30s; others are answered 503\n",
        "  nobody: X-Forwarded-* headers of clients are taken off and set anew\n",
        "  error pages name webmaster@justice.example.com\n",
    ] {
        assert!(text.contains(line), "{line}is missing:\n{text}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn explain_lists_routes_in_the_order_in_which_they_are_tried() {
    let (_folder, file) = written(
        "listeners: [{ address: '[::]:80' }]
upstreams: { app: { endpoints: ['127.0.0.1:8000'] } }
routes:
- { prefix: /, upstream: app }
- { prefix: /long/path, upstream: app }
- { host: b.example, prefix: /, upstream: app }
- { prefix: /long, upstream: app }
- { host: b.example, prefix: /b, upstream: app }
",
    );

    let text = stdout(&vestibule(&["explain", "--config", &file]));

    let order: Vec<_> = text.lines().filter_map(|line| line.strip_suffix(" goes to `app`")).map(str::trim).collect();
    assert_eq!(
        order,
        [
            "b.example/b and all below b.example/b/",
            "b.example/ (whatever is left)",
            "/long/path and all below /long/path/",
            "/long and all below /long/",
            "/ (whatever is left)",
        ]
    );
}

#[test]
fn each_outer_proxy_forwards_the_outermost_prefixes_upgrades_and_the_scheme() {
    let file = example("alongside-apache.yml");
    for (proxy, lines) in [
        (
            "apache",
            [
                "<Location \"/da\">\n",
                "    ProxyPass \"http://127.0.0.1:8000/da\" nocanon upgrade=websocket timeout=125 ttl=70\n",
                "    RequestHeader set X-Forwarded-Proto expr=%{REQUEST_SCHEME}\n",
                "# For a proxy on the same machine it does.\n",
            ],
        ),
        (
            "nginx",
            [
                "location /da/ {\n",
                "    keepalive_timeout 70s;",
                "    proxy_set_header Upgrade $http_upgrade;",
                "    proxy_set_header X-Forwarded-Proto $scheme;\n",
            ],
        ),
        (
            "caddy",
            [
                "@vestibule path /da /da/*\n",
                "reverse_proxy http://127.0.0.1:8000 {\n",
                "keepalive 70s ",
                "max_size 16777216\n",
            ],
        ),
    ] {
        let output = vestibule(&["explain", "--config", file.to_str().unwrap(), "--outer", proxy]);

        let text = stdout(&output);
        for line in lines {
            assert!(text.contains(line), "{proxy}: {line} is missing:\n{text}");
        }
        assert!(!text.contains("/da/ws"), "{proxy}: /da/ws lies below /da and needs no rule:\n{text}");
    }
}

/// Asks a real proxy whether it takes `file`. A proxy that is not installed is only missed in CI.
fn is_taken(program: &str, arguments: &[&str], file: &Path) {
    match Command::new(program).args(arguments).arg(file).output() {
        Ok(output) => assert!(output.status.success(), "{}\n{}", stderr(&output), fs::read_to_string(file).unwrap()),
        Err(error) if env::var_os("CI").is_none() => eprintln!("skipped: {program}: {error}"),
        Err(error) => panic!("{program}: {error}"),
    }
}

#[test]
fn nginx_takes_what_is_printed_for_it() {
    let text = stdout(&vestibule(&[
        "explain",
        "--config",
        example("alongside-apache.yml").to_str().unwrap(),
        "--outer",
        "nginx",
    ]));
    let (http, server) = text.split_once("# and in the server { } of the site:").unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("nginx.conf");
    let kept = folder.path().display();
    let whole = format!(
        "pid {kept}/pid; error_log {kept}/log; events {{}}\n\
         http {{ access_log off;\n{http}\nserver {{ listen unix:{kept}/s;\n{server}\n}} }}\n"
    );
    fs::write(&file, whole).unwrap();

    is_taken("/usr/sbin/nginx", &["-t", "-c"], &file);
}

#[test]
fn apache_takes_what_is_printed_for_it() {
    let text = stdout(&vestibule(&[
        "explain",
        "--config",
        example("alongside-apache.yml").to_str().unwrap(),
        "--outer",
        "apache",
    ]));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("apache.conf");
    let kept = folder.path().display();
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_http", "proxy_wstunnel", "headers"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let whole = format!(
        "{modules}ServerName a.example\nPidFile {kept}/pid\nErrorLog {kept}/log\nListen 127.0.0.1:1\n\
         <VirtualHost *:1>\n{text}\n</VirtualHost>\n"
    );
    fs::write(&file, whole).unwrap();

    is_taken("/usr/sbin/apache2", &["-t", "-f"], &file);
}

#[test]
fn an_apache_that_serves_other_things_is_changed_below_the_prefix_only() {
    let file = example("alongside-apache.yml");
    let text = stdout(&vestibule(&["explain", "--config", file.to_str().unwrap(), "--outer", "apache"]));

    let outside: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', ' ', '<'])).collect();

    // Apache takes this one in a <VirtualHost> only.
    assert_eq!(outside, ["AllowEncodedSlashes NoDecode"], "{text}");
}

#[test]
fn an_outer_proxy_that_is_not_trusted_is_told_what_to_add() {
    let (_folder, file) = written(&LEAST.replace("'[::]:443', tls: true", "'unix:/run/v.sock'"));

    let text = stdout(&vestibule(&["explain", "--config", &file, "--outer", "nginx"]));

    assert!(text.contains("    server unix:/run/v.sock;\n"), "{text}");
    assert!(text.contains("#   trusted_proxies: [unix]\n"), "{text}");
}

#[test]
fn the_schema_that_editors_use_is_the_one_of_this_code() {
    let file = example("schema.json");
    let schema = config::schema();
    if env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&file, serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
    }

    let kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();

    assert!(
        kept == schema,
        "config/schema.json is not current; refresh it: `UPDATE_SCHEMA=1 cargo test --test it config::`"
    );
}
