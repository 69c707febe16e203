//! The log server: who may read, what, and an index made after supervisord's program, or by the application.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use super::{
    super::support::{
        Peer, body,
        clients::connect_from,
        header,
        network::{BALANCER, CLIENT, in_network},
        program, raw, read_rest, status, wait_for,
    },
    Site,
};

fn get(path: &str) -> String {
    raw(([127, 0, 0, 1], 8082).into(), format!("GET {path} HTTP/1.1\r\nHost: logs\r\nConnection: close\r\n\r\n"))
}

fn from(address: &str, path: &str) -> String {
    use std::io::Write;
    let mut stream = connect_from(address, ([127, 0, 0, 1], 8082).into());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: logs\r\nX-Forwarded-For: 10.0.0.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    String::from_utf8(read_rest(&mut stream)).unwrap()
}

/// A docassemble of the role `log`, installed in the folder `root` of the test.
fn site(config: &str, prepare: impl FnOnce(&Path)) -> Site {
    let root = super::super::support::served::folder();
    let logs = root.path().join("log");
    fs::create_dir(&logs).unwrap();
    for (name, text) in
        [("access.log", "one\ntwo\n"), ("uwsgi.log", "three\n"), (".hidden", "no\n"), ("old.log.gz", "\u{1f}\n")]
    {
        fs::write(logs.join(name), text).unwrap();
    }
    fs::create_dir(logs.join("folder")).unwrap();
    prepare(root.path());
    let folder = root.keep();
    Site::start_with(
        Some(config),
        "upstreams: { log: { endpoints: ['unix:{dir}/list.sock'] } }\n",
        &[("CONTAINERROLE", "log"), ("DA_ROOT", folder.to_str().unwrap())],
    )
}

/// A supervisord whose program `sync` adds a file to the logs.
fn supervisord(folder: &Path, password: Option<&str>) -> Option<Peer> {
    let program = program("supervisord")?;
    let secured = password.map(|password| format!("username=da\npassword={password}\n")).unwrap_or_default();
    let configuration = format!(
        "[supervisord]\nnodaemon=true\nuser=root\npidfile={0}/s.pid\nlogfile={0}/s.log\nchildlogdir={0}\n\
         [inet_http_server]\nport=*:9001\n{secured}\
         [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\
         [program:sync]\ncommand=sh -c 'sleep 0.3; echo collected > {0}/log/collected.log'\nautostart=false\n\
         autorestart=false\nstartsecs=0\n",
        folder.display()
    );
    fs::write(folder.join("supervisord.conf"), configuration).unwrap();
    let mut command = Command::new(program);
    command.args(["-n", "-c"]).arg(folder.join("supervisord.conf"));
    let peer = Peer::start(&mut command, &folder.join("supervisord.out"));
    wait_for("supervisord to listen", || std::net::TcpStream::connect("127.0.0.1:9001").is_ok());
    Some(peer)
}

#[test]
fn logs_are_listed_after_sync_and_read_by_those_who_may() {
    in_network(|| {
        let mut running = None;
        let site = site("a: b\n", |root| running = supervisord(root, None));
        if running.is_none() {
            return;
        }
        let index = get("/");
        assert_eq!(status(&index), 200, "{index}");
        assert_eq!(header(&index, "content-type").as_deref(), Some("text/plain; charset=utf-8"));
        assert_eq!(body(&index), "access.log\ncollected.log\nold.log.gz\nuwsgi.log\n", "{}", site.served.events());

        let log = get("/access.log");
        assert_eq!((status(&log), body(&log).as_str()), (200, "one\ntwo\n"));
        assert_eq!(header(&log, "content-type").as_deref(), Some("text/plain; charset=utf-8"));
        assert_eq!(header(&get("/old.log.gz"), "content-type").as_deref(), Some("application/octet-stream"));
        let part = raw(
            ([127, 0, 0, 1], 8080).into(),
            "GET /access.log HTTP/1.1\r\nHost: logs\r\nRange: bytes=4-6\r\nConnection: close\r\n\r\n",
        );
        assert_eq!((status(&part), body(&part).as_str()), (206, "two"), "on Apache's port as well");

        assert_eq!(status(&from(BALANCER, "/access.log")), 200, "a machine of the same network");
        for path in ["/", "/access.log"] {
            let refused = from(CLIENT, path);
            assert_eq!(status(&refused), 403, "whatever headers say");
            assert!(!refused.contains("access.log\n"));
        }
        let post = raw(
            ([127, 0, 0, 1], 8082).into(),
            "POST / HTTP/1.1\r\nHost: logs\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(status(&post), 405);
        assert!(site.served.events().contains("supervisord answers anybody here"), "{}", site.served.events());
    });
}

#[test]
fn nothing_but_the_logs_themselves_can_be_had() {
    in_network(|| {
        let site = site("a: b\n", |root| {
            fs::write(root.join("secret"), "s3cr3t").unwrap();
            symlink(root.join("secret"), root.join("log/link")).unwrap();
            symlink("access.log", root.join("log/same")).unwrap();
            fs::write(root.join("log/closed.log"), "s3cr3t").unwrap();
            fs::set_permissions(root.join("log/closed.log"), fs::Permissions::from_mode(0o600)).unwrap();
        });
        for path in [
            "/../secret",
            "/%2e%2e/secret",
            "/..%2fsecret",
            "/%2e%2e%2fsecret",
            "//etc/passwd",
            "/etc/passwd",
            "/.hidden",
            "/folder",
            "/folder/",
            "/link",
            "/nothing",
            "/access.log/",
            "/%00",
            "/listlog",
        ] {
            let answer = get(path);
            assert!(matches!(status(&answer), 400 | 404 | 503), "{path}: {answer}");
            assert!(!answer.contains("s3cr3t") && !answer.contains("root:"), "{path}: {answer}");
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(status(&get("/closed.log")), 404, "what the user of the workers may not read");
        }
        assert_eq!(body(&get("/same")), "one\ntwo\n", "a link to another log");
        // Nobody collects: there is no supervisord.
        assert!(body(&get("/")).contains("access.log\n"));
        let events = site.served.events();
        assert!(events.contains("the logs were not collected") && events.contains("127.0.0.1:9001"), "{events}");
    });
}

#[test]
fn supervisord_is_told_the_password_and_nobody_else() {
    in_network(|| {
        let mut running = None;
        let site =
            site("supervisor: {username: da, password: s3cr3t}\n", |root| running = supervisord(root, Some("s3cr3t")));
        if running.is_none() {
            return;
        }
        assert!(body(&get("/")).contains("collected.log\n"), "{}", site.served.events());
        let shown = site.served.get("admin.sock", "/config");
        assert!(!shown.contains("s3cr3t") && shown.contains("\"username\":\"da\""), "{shown}");
        assert!(!site.served.events().contains("supervisord answers anybody"));

        let said = site.reload("supervisor: {username: da, password: other}\n");
        assert!(said.contains("in force"), "{said}");
        wait_for("another run", || {
            get("/");
            site.served.events().contains("wants a username and a password, or other ones")
        });
        assert!(!site.served.events().contains("s3cr3t"), "{}", site.served.events());
    });
}

#[test]
fn an_application_that_lists_logs_is_asked_first() {
    in_network(|| {
        let Some(uwsgi) = program("uwsgi") else { return };
        let site = site("a: b\n", |_| {});
        fs::write(
            site.served.path("list.py"),
            "def application(environ, start):\n    start('200 OK', [('Content-Type', 'text/plain')])\n    \
             return [('listed by ' + environ['PATH_INFO'] + '?' + environ['QUERY_STRING']).encode()]\n",
        )
        .unwrap();
        let mut command = Command::new(uwsgi);
        command.current_dir(site.served.folder.path()).env_remove("PYTHONHOME");
        command.args(["--plugin", "python3", "--master", "--die-on-term", "--need-app", "--wsgi-file", "list.py"]);
        command.args(["--socket", "list.sock", "--chmod-socket=666"]);
        let _peer = Peer::start(&mut command, &site.served.path("uwsgi.out"));
        wait_for("the application", || body(&get("/")).contains("listed by /listlog?\r\n"));
        let health = get("/listlog/health_check?ready=1");
        assert!(health.contains("listed by /listlog/health_check?ready=1"), "{health}");
        assert_eq!(body(&get("/access.log")), "one\ntwo\n");
    });
}
