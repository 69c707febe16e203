//! `config.yml` and the environment as docassemble reads them, and what they mean for a front door.

#![allow(clippy::unwrap_used, reason = "in a test, a helper that cannot do its part is a failure with its place")]

use std::{net::Ipv4Addr, path::Path, time::Duration};

use proptest::prelude::*;

use super::{
    super::{
        Source,
        ciphers::Cipher,
        error::{Fault, Names, Origin},
        plan::{ChallengeKind, EndpointAddress, EndpointPlan, ListenAddress, Plan, ProgramPlan, Protocol},
        tree, understand_with,
    },
    settings::{Answer, Machine, Settings, WebServer, read},
};

type Variables<'a> = &'a [(&'a str, &'a str)];

fn machine() -> Machine {
    Machine { name: Some("box.example.net".to_owned()), addresses: vec![Ipv4Addr::new(172, 17, 0, 2)] }
}

fn answer(text: Option<&str>, variables: Variables<'_>) -> Answer {
    let environment = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    match text.map(|text| tree::parse(text, Origin::Docassemble)).transpose() {
        Ok(tree) => read(tree.as_ref(), &environment, &machine()),
        Err(fault) => Answer::Refused(vec![fault]),
    }
}

fn settings(text: &str, variables: Variables<'_>) -> Settings {
    match answer(Some(text), variables) {
        Answer::Settings(settings) => *settings,
        other => panic!("{other:?}\n{text}"),
    }
}

fn lines(faults: &[Fault]) -> Vec<String> {
    let names = Names { native: "v.yml".to_owned(), docassemble: "config.yml".to_owned() };
    faults.iter().map(|fault| names.line(fault)).collect()
}

fn refused(text: &str) -> Vec<String> {
    match answer(Some(text), &[]) {
        Answer::Refused(faults) => lines(&faults),
        other => panic!("{other:?}\n{text}"),
    }
}

fn warnings(text: &str, variables: Variables<'_>) -> Vec<String> {
    lines(&settings(text, variables).warnings)
}

fn source() -> Source {
    Source::Docassemble { file: "/da/config.yml".into(), overlay: Some("/etc/v.yml".into()) }
}

fn plan_of(settings: &Settings, overlay: &str) -> Result<Plan, String> {
    let text = super::join(settings, overlay);
    let none = |_: &str| None;
    understand_with(&source(), &text, &none).map(|(plan, _)| plan).map_err(|error| error.to_string())
}

fn plan(text: &str, overlay: &str) -> Plan {
    plan_of(&settings(text, &[]), overlay).unwrap_or_else(|error| panic!("{error}"))
}

fn addresses(plan: &Plan) -> Vec<String> {
    let show = |address: &ListenAddress| address.to_string().replace("0.0.0.0", "[::]");
    plan.listeners.iter().map(|listener| show(&listener.address)).collect()
}

#[test]
fn an_empty_configuration_is_the_site_at_the_root_without_tls() {
    let plan = plan("", "");

    assert_eq!(addresses(&plan), ["[::]:80"]);
    assert_eq!(plan.host, None);
    assert!(plan.trusted_proxies.is_empty());
    let app = &plan.upstreams["app"];
    assert_eq!(app.protocol, Protocol::Uwsgi);
    let socket = EndpointAddress::Unix("/var/run/uwsgi/docassemble.sock".into());
    assert_eq!(app.endpoints, [EndpointPlan::at(socket)]);
    assert_eq!(app.concurrency.map(usize::from), Some(6));
    assert_eq!(app.health_path.as_deref(), Some("/health_check"));
    assert_eq!((app.queue.limit, app.queue.timeout), (1024, Duration::from_secs(30)));
    let websockets = EndpointAddress::Tcp { host: "127.0.0.1".to_owned(), port: 5000 };
    assert_eq!(plan.upstreams["websockets"].endpoints, [EndpointPlan::at(websockets)]);
    assert_eq!(plan.upstreams["websockets"].hold, Duration::from_secs(15), "less than a browser waits");
    let route = plan.routes.iter().find(|route| route.upstream == "app").unwrap();
    assert_eq!((route.timeout, route.body_limit), (Duration::from_secs(60), Some(16 << 20)));
    assert_eq!(
        route.files,
        Vec::<std::path::PathBuf>::new(),
        "an old configuration without `use nginx to serve files`"
    );
    assert_eq!(plan.administrator, None);
    assert_eq!(plan.warnings, [""; 0]);
}

#[test]
fn the_front_door_has_tls_and_redirects_to_the_name_of_the_site() {
    let plan = plan("use https: True\nexternal hostname: Justice.Example.com.\nroot: /da/\n", "");

    assert_eq!(addresses(&plan), ["[::]:80", "[::]:443"]);
    assert_eq!(plan.host.as_ref().map(ToString::to_string).as_deref(), Some("justice.example.com"));
    let redirect = plan.listeners[0].redirect.as_ref().unwrap();
    assert_eq!((redirect.host.as_str(), redirect.port), ("justice.example.com", 443));
    assert!(plan.listeners[1].tls);
    let prefixes: Vec<_> = plan.routes.iter().map(|route| (route.prefix.to_string(), route.strip_prefix)).collect();
    assert_eq!(prefixes, [("/da/ws/".to_owned(), true), ("/da/".to_owned(), false)]);
    assert_eq!(plan.upstreams["app"].health_path.as_deref(), Some("/da/health_check"));
}

#[test]
fn use_lets_encrypt_orders_a_certificate_and_puts_it_where_docassemble_looks() {
    let plan = plan(
        "use https: True\nuse lets encrypt: True\nlets encrypt email: me@example.com\nexternal hostname: justice.example.com\n",
        "",
    );

    let [ordered] = &plan.tls.acme[..] else { panic!("{:?}", plan.tls) };
    assert_eq!(ordered.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["justice.example.com"]);
    assert_eq!(ordered.email.as_deref(), Some("me@example.com"));
    assert_eq!(ordered.challenge, ChallengeKind::Http01);
    assert_eq!(plan.tls.import, [Path::new("/etc/letsencrypt")]);
    let export = plan.tls.export.as_ref().unwrap();
    assert_eq!((export.folder.as_deref(), export.replace), (Some(Path::new("/etc/letsencrypt")), true));
    assert_eq!(export.files.len(), usize::from(Path::new("/etc/exim4").is_dir()));
    for files in &export.files {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let said = format!("{certificate} {key} {}:{} {}", files.owner, files.group, files.mode);
        assert_eq!(said, "/etc/exim4/exim.crt /etc/exim4/exim.key root:Debian-exim 0640");
        assert_eq!(files.unless.as_deref(), Some(Path::new("/etc/ssl/docassemble/exim.crt")));
        assert_eq!(plan.tls.deploy[0].command, ["supervisorctl", "-s", "http://localhost:9001", "restart", "exim4"]);
    }
    assert_eq!(plan.warnings, [""; 0]);
}

#[test]
fn no_certificate_is_ordered_where_nobody_could_have_it() {
    for (text, variables, why) in [
        (
            "use https: True\nuse lets encrypt: True\nexternal hostname: my_box.example.com\n",
            &[][..],
            "`my_box.example.com`, which no authority knows",
        ),
        (
            "use https: True\nuse lets encrypt: True\nexternal hostname: justice.example.com\n",
            &[("CONTAINERROLE", "web:celery")],
            "there may be other web servers; name a storage that they share",
        ),
        (
            "use https: False\nuse lets encrypt: True\nexternal hostname: justice.example.com\n",
            &[],
            "it has no effect without `use https: True`",
        ),
    ] {
        let plan = plan_of(&settings(text, variables), "").unwrap();
        assert_eq!(plan.tls.acme, [], "{text}");
        assert!(plan.warnings.iter().any(|warning| warning.contains(why)), "{:?}", plan.warnings);
    }
}

#[test]
fn behind_a_balancer_it_is_believed_and_8081_redirects() {
    let plan = plan("behind https load balancer: yes\nexternal hostname: justice.example.com\n", "");

    assert_eq!(addresses(&plan), ["[::]:80", "[::]:8081"]);
    assert!(plan.listeners[0].redirect.is_none() && plan.listeners[1].redirect.is_some());
    for (address, expected) in [
        ("10.1.2.3", true),
        ("172.31.255.255", true),
        ("192.168.1.1", true),
        ("127.0.0.1", false),
        ("172.32.0.1", false),
        ("100.64.0.1", false),
        ("fd00::1", false),
    ] {
        assert_eq!(plan.trusted_proxies.contains(address.parse().unwrap()), expected, "{address}");
    }
    assert!(plan.limits.keep_alive > Duration::from_secs(60));
}

#[test]
fn truth_is_what_python_takes_for_true() {
    for (written, expected) in [
        ("True", true),
        ("yes", true),
        ("On", true),
        ("1", true),
        ("'anything'", true),
        ("[a]", true),
        ("False", false),
        ("no", false),
        ("OFF", false),
        ("0", false),
        ("null", false),
        ("", false),
        ("''", false),
        ("[]", false),
        ("{}", false),
    ] {
        assert_eq!(settings(&format!("use https: {written}"), &[]).https.value, expected, "{written}");
    }
    assert!(settings("use https: 'False'", &[]).https.value, "text, as Python has it");
    assert!(
        warnings("use https: 'False'\nexternal hostname: a.example", &[])[0]
            .starts_with("config.yml:1:12: use https: in quotes")
    );
}

#[test]
fn keys_are_spelled_as_docassemble_spells_them() {
    assert!(settings("use_https: True", &[]).https.value, "an underscore is a space");
    assert!(settings("use https: False\nuse https: True", &[]).https.value, "the last one counts");
    assert!(settings("use https: False\nuse_https: True", &[]).https.value);
    assert!(!settings("Use-HTTPS: True", &[]).https.value);
    assert_eq!(
        warnings("Use-HTTPS: True", &[]),
        ["config.yml:1:1: use https: docassemble does not know `Use-HTTPS`; write `use https`"]
    );
}

#[test]
fn what_is_no_concern_of_a_front_door_is_passed_over_and_never_told() {
    let text = "secretkey: s3cr3t\ndb: {password: s3cr3t}\n? [a, b]\n: c\ntagged: !thing s3cr3t\n<<: {x: 1}\n\
                x y z: [1, {2: 3}]\nblock: |\n  s3cr3t\n---\nsecond: s3cr3t\n";
    let settings = settings(text, &[]);
    assert!(!format!("{settings:?}").contains("s3cr3t"));
    assert!(!super::join(&settings, "").contains("s3cr3t"));
}

#[test]
fn the_environment_counts_where_docassemble_asks_it() {
    fn host(text: &str, variables: Variables<'_>) -> Option<String> {
        settings(text, variables).host.map(|host| host.value)
    }
    let variables: Variables<'_> = &[("DAHOSTNAME", "env.example")];
    assert_eq!(host("a: b", variables).as_deref(), Some("env.example"), "the file is silent");
    assert_eq!(host("external hostname: null", variables).as_deref(), Some("env.example"));
    assert_eq!(host("external hostname: file.example", variables).as_deref(), Some("file.example"));
    let both: Variables<'_> = &[("DAHOSTNAME", "env.example"), ("ENVIRONMENT_TAKES_PRECEDENCE", "True ")];
    assert_eq!(host("external hostname: file.example", both).as_deref(), Some("env.example"));
    for unset in ["", "none", "null", "undefined", "None"] {
        assert_eq!(host("a: b", &[("DAHOSTNAME", unset)]), None, "{unset}");
    }

    // What `read_config` exports from the file alone once there is one.
    assert!(!settings("a: b", &[("USEHTTPS", "true")]).https.value);
    let Answer::Settings(first) =
        answer(None, &[("USEHTTPS", "true"), ("DAHOSTNAME", "a.example"), ("POSTURLROOT", "/da/")])
    else {
        panic!("no settings");
    };
    assert!(first.https.value && !first.written);
    assert_eq!(first.root.value, "/da/");
    assert!(first.offload.value, "a new configuration is made with `use nginx to serve files`");
}

#[test]
fn a_variable_spelled_otherwise_than_true_has_one_effect_and_a_warning() {
    for (value, expected, warned) in [
        ("true", true, false),
        ("True", true, true),
        ("TRUE", true, true),
        ("false", false, false),
        ("False", false, true),
        ("yes", false, true),
        ("1", true, false),
        ("0", false, false),
        ("maybe", false, true),
        ("", false, false),
        ("null", false, false),
    ] {
        let Answer::Settings(settings) = answer(None, &[("USEHTTPS", value), ("DAHOSTNAME", "a.example")]) else {
            panic!("no settings for {value}");
        };
        assert_eq!((settings.https.value, !settings.warnings.is_empty()), (expected, warned), "{value}");
    }
    let Answer::Settings(settings) = answer(None, &[("USEHTTPS", "True"), ("DAHOSTNAME", "a.example")]) else {
        panic!("no settings");
    };
    assert_eq!(lines(&settings.warnings), ["environment: USEHTTPS: `True` is taken for true; write `true`"]);
}

#[test]
fn what_would_be_another_site_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "a: b\nexternal hostname: https://justice.example.com/\n",
            "config.yml:2:20: external hostname: write the host name alone, without a scheme: `justice.example.com`",
        ),
        ("root: da/\n", "config.yml:1:7: root: `da/` is not a path that begins and ends with a slash, such as `/da/`"),
        ("http port: eighty\n", "config.yml:1:12: http port: a port is a whole number from 1 to 65535"),
        ("http port: 70000\n", "config.yml:1:12: http port: a port is a whole number from 1 to 65535"),
        (
            "websockets ip: 'not a host'\n",
            "config.yml:1:16: websockets ip: it has to be an IP address, such as `127.0.0.1`",
        ),
        (
            "nginx ssl protocols: TLSv1 SSLv3\n",
            "config.yml:1:22: nginx ssl protocols: none of these is spoken here; write `TLSv1.2 TLSv1.3`",
        ),
        (
            "nginx ssl ciphers: RC4;\n",
            "config.yml:1:20: nginx ssl ciphers: it leaves no cipher that is spoken here, where every one is forward secret \
             and authenticated; write `HIGH`, or leave it out",
        ),
        ("- a\n- b\n", "config.yml:1:1: expected a mapping of keys, found a list"),
    ] {
        assert_eq!(refused(text), [expected], "{text}");
    }
    assert!(refused("a: [b\nc: d\n")[0].starts_with("config.yml:"), "malformed");
}

#[test]
fn what_docassemble_forgives_is_a_warning() {
    let cases: &[(&str, &str)] = &[
        ("root: /da", "config.yml:1:7: root: write `/da/`: docassemble needs the slash at the end"),
        (
            "maximum content length: 16MB",
            "config.yml:1:25: maximum content length: it has to be a whole number of bytes, or null; taken for 16777216, as \
             docassemble does",
        ),
        (
            "web server timeout: long",
            "config.yml:1:21: web server timeout: it has to be a number of seconds, a day at most; taken for 60",
        ),
        (
            "nginx ssl protocols: TLSv1.1 TLSv1.2;",
            "config.yml:1:22: nginx ssl protocols: not spoken here, and left out: TLSv1.1",
        ),
        (
            "server administrator email: nobody",
            "config.yml:1:29: server administrator email: expected a mail address such as `admin@example.com`, found \
             `nobody`; error pages name nobody",
        ),
        (
            "websockets port: x",
            "config.yml:1:18: websockets port: it has to be a port; taken for 5000, as docassemble does",
        ),
        (
            "web server: iis",
            "config.yml:1:13: web server: docassemble knows `nginx`, `apache` and `none`; taken for `nginx`",
        ),
        (
            "use https: True",
            "config.yml:1:1: external hostname: there is none, so the name of this machine is taken, box.example.net; write \
             the name that browsers use",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(warnings(text, &[]), [*expected], "{text}");
    }
    assert_eq!(settings("root: /da", &[]).root.value, "/da/");
}

#[test]
fn limits_and_timeouts_are_docassembles() {
    for (written, expected) in [
        ("1000", Some(1000)),
        ("0", None),
        ("-5", None),
        ("null", None),
        ("16_000", Some(16_000)),
        ("'5'", Some(16 << 20)),
    ] {
        let settings = settings(&format!("maximum content length: {written}"), &[]);
        assert_eq!(settings.body_limit.value, expected, "{written}");
        assert_eq!(plan_of(&settings, "").unwrap().routes.last().unwrap().body_limit, expected, "{written}");
    }
    assert_eq!(plan("web server timeout: '300'", "").routes.last().unwrap().timeout, Duration::from_secs(300));
    assert_eq!(settings("a: b", &[("DATIMEOUT", "90")]).timeout.value, 90);
}

#[test]
fn tls_is_parsed_whole() {
    let plan = plan(
        "use https: true\nexternal hostname: a.example\nnginx ssl protocols: TLSv1.3 TLSv1.2\nnginx ssl ciphers: HIGH:!CHACHA20:!aNULL;",
        "",
    );
    assert!(plan.tls.tls12 && plan.tls.tls13);
    assert_eq!(plan.tls.ciphers, Cipher::ALL[..4]);
    let older = self::plan("nginx ssl protocols: TLSv1.2", "");
    assert!(older.tls.tls12 && !older.tls.tls13);
}

#[test]
fn files_go_out_as_the_release_line_has_it() {
    let files = |text| plan(text, "").routes.last().unwrap().files.len();
    assert_eq!(files("use nginx to serve files: True"), 2);
    assert_eq!(files("xsendfile: True"), 0, "of no effect behind nginx");
    assert_eq!(files("web server: apache"), 2);
    assert_eq!(files("web server: apache\nxsendfile: False"), 0);
    let first = |variables| match answer(None, variables) {
        Answer::Settings(settings) => settings.offload.value,
        other => panic!("{other:?}"),
    };
    assert!(first(&[("DAWEBSERVER", "apache")]));
    assert!(!first(&[("DAWEBSERVER", "apache"), ("BEHINDHTTPSLOADBALANCER", "true"), ("DAHOSTNAME", "a.example")]));
}

#[test]
fn the_apache_line_has_its_own_threads_logs_and_patience() {
    let plan = plan("web server: apache", "");
    assert_eq!(plan.upstreams["app"].concurrency.map(usize::from), Some(5));
    assert_eq!(plan.drain, Duration::from_secs(58));
    assert!(format!("{:?}", plan.access_log).contains("/var/log/apache2/access.log"));
}

#[test]
fn uwsgi_on_port_80_is_not_sent_its_own_requests() {
    let settings = settings("web server: none", &[]);
    assert_eq!(settings.web_server, WebServer::None);
    let problem = plan_of(&settings, "").unwrap_err();
    assert!(problem.contains("upstreams.app.endpoints[0]") && problem.contains("round in circles"), "{problem}");
    assert!(plan_of(&settings, "listeners: [{ address: '127.0.0.1:8080' }]").is_ok());
}

#[test]
fn the_socket_server_is_looked_for_where_it_may_be() {
    let endpoints =
        |text: &str| -> Vec<_> { settings(text, &[]).websockets.into_iter().map(|endpoint| endpoint.value).collect() };
    assert_eq!(endpoints("websockets port: 5001"), ["127.0.0.1:5001"]);
    assert_eq!(endpoints("websockets ip: 10.0.0.7"), ["10.0.0.7:5000"]);
    assert_eq!(endpoints("websockets ip: '::1'"), ["[::1]:5000"]);
    assert_eq!(endpoints("expose websockets: True"), ["172.17.0.2:5000", "127.0.0.1:5000"]);
    assert_eq!(endpoints("expose websockets: True\nwebsockets ip: 127.0.0.1"), ["127.0.0.1:5000"]);
    assert_eq!(endpoints("enable monitor: False"), [""; 0]);
    assert_eq!(endpoints("checkin interval: 0"), [""; 0]);
    assert!(!plan("enable monitor: False", "").upstreams.contains_key("websockets"));
}

#[test]
fn url_root_says_the_public_port_and_is_held_against_the_rest() {
    let front = "use https: True\nexternal hostname: a.example\n";
    let plan = plan(&format!("{front}url root: https://a.example:8443\n"), "");
    assert_eq!(plan.listeners[0].redirect.as_ref().unwrap().port, 8443);
    assert!(warnings(&format!("{front}url root: http://a.example\n"), &[])[0].contains("begins with http"));
    assert!(
        warnings(&format!("{front}url root: https://b.example\n"), &[])[0]
            .contains("not the address of `external hostname`")
    );
}

#[test]
fn a_path_in_config_yml_leads_nowhere_else() {
    let plan = plan("use https: true\nexternal hostname: a.example\ncert install directory: /root/.ssh\n", "");
    assert!(plan.tls.certificates.is_empty());
    assert!(
        plan.warnings[0].contains("/da/config.yml:3:25: cert install directory: the application can write this file")
    );
    let awaited = plan.docassemble.unwrap().awaited;
    assert!(awaited.iter().all(|file| file.starts_with("/etc/ssl/docassemble")), "{awaited:?}");
    assert!(awaited.contains(&"/etc/ssl/docassemble/apache.ca.pem".into()));
    let upwards = self::plan(
        "use https: true\nexternal hostname: a.example\ncert install directory: /etc/ssl/docassemble/../../x\n",
        "",
    );
    assert!(!upwards.warnings.is_empty());
}

#[test]
fn config_yml_reads_no_variable_and_names_no_key_of_ours() {
    let text = "external hostname: a.example\nuser: root\nadmin: unix:/tmp/x\nlisteners: []\nfiles: [/]\n\
                server administrator email: ${SECRET}@example.com\n";
    let plan = plan(text, "");
    assert_eq!(plan.user, "www-data");
    assert_eq!(plan.administrator.as_deref(), Some("${SECRET}@example.com"));
    assert!(format!("{:?}", plan.admin).contains("/run/vestibule/admin.sock"));
}

#[test]
fn an_overlay_wins_by_key_and_by_prefix() {
    let overlay = "routes:\n  - { prefix: /da, timeout: 300s, files: [/opt] }\n  - { prefix: /, upstream: apache }\n\
                   upstreams:\n  app: { concurrency: 12 }\n  apache: { endpoints: ['127.0.0.1:8088'] }\n\
                   listeners: [{ address: '127.0.0.1:8000' }]\naccess_log: { path: '-' }\n";
    let plan = plan("root: /da/\nmaximum content length: null\n", overlay);
    assert_eq!(addresses(&plan), ["127.0.0.1:8000"]);
    assert_eq!(plan.upstreams["app"].concurrency.map(usize::from), Some(12));
    assert_eq!(plan.upstreams["app"].protocol, Protocol::Uwsgi, "what is not named stays");
    let da = plan.routes.iter().find(|route| route.prefix.as_str() == "/da").unwrap();
    assert_eq!((da.timeout, da.body_limit), (Duration::from_secs(300), None));
    assert_eq!(da.files, [Path::new("/opt")]);
    assert_eq!(plan.routes.len(), 3);
}

#[test]
fn a_fault_of_an_overlay_has_its_own_file() {
    let problem =
        plan_of(&settings("root: /da/\n", &[]), "workers: 0\nroutes: [{ prefix: /da/, timeout: 5 }]\n").unwrap_err();
    let lines: Vec<_> = problem.lines().collect();
    assert!(lines[0].starts_with("/etc/v.yml:1:10: workers:"), "{problem}");
    assert!(lines[1].starts_with("/etc/v.yml:2:35: routes[1].timeout:"), "{problem}");
    let empty = plan_of(&settings("", &[]), "# nothing but words\n");
    assert!(empty.is_ok(), "{empty:?}");
}

#[test]
fn the_role_of_the_machine_says_what_is_served() {
    let problem = plan_of(&settings("a: b", &[("CONTAINERROLE", "celery:cron")]), "").unwrap_err();
    assert_eq!(
        problem,
        "environment: CONTAINERROLE: neither `web` nor `log` is among the roles of this machine, so it needs no front door"
    );
    let logs = plan_of(
        &settings(
            "log: /usr/share/docassemble/log\nsupervisor: {username: a, password: b}\n",
            &[("CONTAINERROLE", "log")],
        ),
        "",
    );
    let logs = logs.unwrap();
    assert_eq!(addresses(&logs), ["[::]:8082", "[::]:8080"]);
    let server = logs.listeners[0].log_server.as_ref().unwrap();
    assert_eq!((server.folder.to_str(), server.index.as_deref()), (Some("/usr/share/docassemble/log"), Some("log")));
    assert!(
        server.allow.contains("10.0.0.9".parse().unwrap()) && !server.allow.contains("203.0.113.7".parse().unwrap())
    );
    let supervisor = server.supervisor.as_ref().unwrap();
    assert_eq!((supervisor.program.as_str(), supervisor.password.as_ref().unwrap().expose()), ("sync", "b"));
    assert!(!format!("{logs:?}").contains("Secret(b"));
    let elsewhere = plan_of(&settings("log: /etc\n", &[("CONTAINERROLE", "web:log")]), "").unwrap();
    assert_eq!(elsewhere.listeners.len(), 3);
    assert!(elsewhere.warnings[0].contains("log: the application can write this file"), "{:?}", elsewhere.warnings);
    for roles in ["all", "web", "web:celery", ":all:", ""] {
        assert!(plan_of(&settings("a: b", &[("CONTAINERROLE", roles)]), "").is_ok(), "{roles}");
    }
}

#[test]
fn what_is_kept_elsewhere_has_to_be_fetched() {
    for (text, at) in [
        ("config from: arn:aws:secretsmanager:us-east-1:1:secret:x\n", "config from"),
        ("external hostname: '@Microsoft.KeyVault(VaultName=a;SecretName=b)'\n", "external hostname"),
        ("supervisor: {username: a, password: 'arn:aws:secretsmanager:x'}\n", "supervisor"),
    ] {
        match answer(Some(text), &[]) {
            Answer::Elsewhere(fault) => assert_eq!(fault.at, at),
            other => panic!("{other:?}"),
        }
    }
    let unrelated = "db: {password: 'arn:aws:secretsmanager:x'}\n";
    assert!(matches!(answer(Some(unrelated), &[]), Answer::Settings(_)), "of no concern to us");
}

#[test]
fn the_password_of_supervisord_is_shown_to_nobody() {
    let settings = settings("supervisor: {username: da, password: s3cr3t}\n", &[]);
    let supervisor = settings.supervisor.as_ref().unwrap();
    assert_eq!(supervisor.value.password, "s3cr3t");
    assert!(!format!("{settings:?}").contains("s3cr3t"));
    assert_eq!(self::settings("supervisor: {username: da}\n", &[]).supervisor, None, "both, or neither");
}

#[test]
fn the_programs_behind_its_upstreams_are_asked_about_and_an_overlay_has_one_restarted() {
    let text = "supervisor: {username: da, password: s3cr3t}\n";
    let plan = plan(text, "upstreams: { app: { supervisor: { restart: { after: 5 } } } }");
    let program = |upstream: &str| plan.upstreams[upstream].program.clone().unwrap();
    for (upstream, name, after) in [("app", "uwsgi", Some(5)), ("websockets", "websockets", None)] {
        let ProgramPlan { supervisor, restart, watch } = program(upstream);
        let watch = watch.unwrap();
        assert_eq!((watch.cpu, watch.memory, watch.restart), (Some(90), None, false), "F97");
        assert_eq!((supervisor.program.as_str(), supervisor.address.to_string().as_str()), (name, "127.0.0.1:9001"));
        assert_eq!(supervisor.password.unwrap().expose(), "s3cr3t");
        assert_eq!(restart.map(|restart| restart.after), after);
    }
}

proptest! {
    #[test]
    fn any_file_is_read_or_refused_at_a_place(
        keys in proptest::collection::vec(
            (proptest::sample::select(super::settings::KEYS), "(true|0|null|-1|[a-z/.:]{0,12}|'[^'\\n]{0,8}'|\\[x\\]|\\{a: b\\}|\\PC{0,9})"),
            0..12,
        )
    ) {
        let lines: Vec<_> = keys.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let text = lines.concat();
        crate::properties::docassemble(text.as_bytes());
    }
}
