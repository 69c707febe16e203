//! Beside a real Apache, in either order, and behind what `explain --outer` prints: the lines are those of the documentation.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    super::support::{
        Backend, Peer, body,
        clients::{self, connect_from},
        connect, header,
        network::{CLIENT, in_network},
        noise, program, raw, read_response,
        served::folder,
        status, wait_for,
    },
    Site,
    installed::{HOST, socket_server, upgrade},
};

/// The first block of this language in the documentation that has `part` in it.
fn documented(language: &str, part: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/docassemble.md")).unwrap();
    let blocks = text.split("```").skip(1).step_by(2);
    let block =
        blocks.filter_map(|block| block.split_once('\n')).find(|(head, code)| *head == language && code.contains(part));
    let (_, code) = block.unwrap_or_else(|| panic!("no {language} block with {part}"));
    // Within a list a block is indented.
    let indent =
        code.lines().find(|line| !line.trim().is_empty()).map_or(0, |line| line.len() - line.trim_start().len());
    code.lines().map(|line| line.get(indent..).unwrap_or_default().to_owned() + "\n").collect()
}

/// A real server in the foreground, once it listens on `port`.
struct Neighbour {
    _peer: Peer,
    _folder: tempfile::TempDir,
}

impl Neighbour {
    fn start(folder: tempfile::TempDir, program: &Path, arguments: &[&str], port: u16) -> Self {
        let log = folder.path().join("out");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path()).env("HOME", folder.path());
        let mut peer = Peer::start(&mut command, &log);
        wait_for("the neighbour to listen", || {
            assert!(!peer.has_ended(), "{}", fs::read_to_string(&log).unwrap());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { _peer: peer, _folder: folder }
    }

    /// Debian's Apache on `port`, with a page of its own and `lines`, in a virtual host where `host`.
    fn apache(port: u16, lines: &str) -> Option<Self> {
        let program = server("apache2")?;
        let folder = folder();
        let kept = folder.path().display();
        fs::create_dir(folder.path().join("html")).unwrap();
        fs::write(folder.path().join("html/index.html"), "the rest of the site\n").unwrap();
        let modules = [
            "mpm_event",
            "authz_core",
            "dir",
            "alias",
            "mime",
            "rewrite",
            "headers",
            "proxy",
            "proxy_http",
            "proxy_wstunnel",
        ];
        let modules =
            modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")).concat();
        let whole = format!(
            "{modules}ServerRoot {kept}\nPidFile {kept}/pid\nMutex file:{kept}\nErrorLog {kept}/error.log\nServerName localhost\n\
             Listen 127.0.0.1:{port}\nUser www-data\nGroup www-data\nTypesConfig /etc/mime.types\nDocumentRoot {kept}/html\n\
             <Directory {kept}/html>\nRequire all granted\n</Directory>\nRedirect /old http://localhost:{port}/new.html\n\
             <VirtualHost *:{port}>\nServerName {HOST}\n{lines}\n</VirtualHost>\n"
        );
        let file = folder.path().join("apache.conf");
        fs::write(&file, whole).unwrap();
        let file = file.to_str().unwrap().to_owned();
        Some(Self::start(folder, &program, &["-D", "FOREGROUND", "-f", &file], port))
    }

    fn nginx(port: u16, http: &str, server_lines: &str) -> Option<Self> {
        let program = server("nginx")?;
        let folder = folder();
        let kept = folder.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {kept}/{name};\n"))
            .concat();
        let whole = format!(
            "daemon off; pid {kept}/pid; error_log {kept}/error.log; user www-data; events {{}}\n\
             http {{ access_log off;\n{temporary}{http}\nserver {{ listen 127.0.0.1:{port}; server_name {HOST};\n{server_lines}\n}} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, whole).unwrap();
        let file = file.to_str().unwrap().to_owned();
        Some(Self::start(folder, &program, &["-c", &file], port))
    }
}

/// Debian keeps servers where an ordinary PATH does not lead.
fn server(name: &str) -> Option<PathBuf> {
    let place = Path::new("/usr/sbin").join(name);
    if place.exists() { Some(place) } else { program(name) }
}

fn get(path: &str) -> String {
    ask("GET", path, "")
}

fn ask(method: &str, path: &str, fields: &str) -> String {
    raw(
        ([127, 0, 0, 1], 80).into(),
        format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n"),
    )
}

/// What the application was told, names in lower case.
fn told(answer: &str) -> Vec<String> {
    assert_eq!(status(answer), 200, "{answer}");
    body(answer)
        .lines()
        .map(|line| {
            line.split_once(':').map_or_else(|| line.to_owned(), |(name, value)| name.to_lowercase() + ":" + value)
        })
        .collect()
}

fn says(told: &[String], line: &str) -> bool {
    told.iter().any(|said| said == line)
}

/// An application that shows what it was told, and redirects to itself by the address that it was reached at.
fn application() -> Backend {
    Backend::start(|mut stream| {
        while let Some(request) = super::super::support::read_request(&mut stream) {
            let answer = if request.windows(6).any(|part| part == b"/moved") {
                b"HTTP/1.1 302 Found\r\nLocation: http://localhost:8000/da/next\r\nContent-Length: 0\r\n\r\n".to_vec()
            } else {
                [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.len()).into_bytes(), request].concat()
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}

const BEHIND: &str = "root: /da/\nbehind https load balancer: True\nexternal hostname: justice.example.com\nhttp port: 8000\n\
     expose websockets: True\n";

fn overlay(application: &Backend, more: &str) -> String {
    format!(
        "upstreams: {{ app: {{ protocol: http, endpoints: ['{}'], health: {{ ready: null }} }} }}\n{more}",
        application.address
    )
}

#[test]
fn an_apache_in_front_with_the_lines_of_docassembles_documentation() {
    in_network(|| {
        let application = application();
        let _sockets = Backend::start_on(std::net::TcpListener::bind("127.0.0.1:5000").unwrap(), socket_server);
        let Some(_apache) = Neighbour::apache(80, &documented("apache", "RewriteRule")) else { return };
        let _site = Site::start(BEHIND, &overlay(&application, "trusted_proxies: [loopback]\n"));

        for path in ["/", "/dashboard", "/DA/x", "/health_check"] {
            let answer = get(path);
            let expected = if path == "/" { 200 } else { 404 };
            assert_eq!(status(&answer), expected, "{path} is Apache's own");
            assert!(!answer.contains("GET "), "{path}: {answer}");
        }
        for (asked, seen) in [
            ("/da", "get /da http/1.1"),
            ("/da/", "GET /da/ HTTP/1.1"),
            ("/da/interview?i=1", "GET /da/interview?i=1 HTTP/1.1"),
        ] {
            let told = told(&get(asked));
            assert_eq!(told[0].to_lowercase(), seen.to_lowercase());
            for line in [
                "x-forwarded-host: justice.example.com",
                "x-forwarded-proto: https",
                "x-forwarded-port: 443",
                "x-forwarded-for: 127.0.0.1",
                "host: localhost:8000",
            ] {
                assert!(says(&told, line), "{line} is missing of {asked}: {told:?}");
            }
            assert!(!told.iter().any(|line| line.starts_with("x-forwarded-server")), "{told:?}");
        }
        assert!(body(&get("/da/ws/")).starts_with("GET / HTTP/1.1"), "straight to the socket server");
        assert!(
            body(&get("/da/ws/socket.io/?EIO=4&transport=polling"))
                .starts_with("GET /socket.io/?EIO=4&transport=polling ")
        );
        let (head, back) =
            upgrade(connect(([127, 0, 0, 1], 80).into()), "/da/ws/socket.io/?EIO=4&transport=websocket", HOST);
        assert_eq!((status(&head), back.as_str()), (101, "hello"));
        let mut other = connect(([127, 0, 0, 1], 80).into());
        write!(other, "GET /da/ws/other HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        assert_ne!(status(&read_response(&mut other)), 101, "only what these lines name is a tunnel");
        let moved = get("/da/moved");
        assert_eq!(header(&moved, "location").as_deref(), Some("http://justice.example.com/da/next"), "{moved}");
        // Its health check comes by address.
        let health = raw(
            ([127, 0, 0, 1], 8000).into(),
            "GET /da/health_check HTTP/1.1\r\nHost: 172.17.0.2:8000\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(status(&health), 200);
    });
}

#[test]
fn an_apache_behind_with_the_overlay_of_the_documentation() {
    in_network(|| {
        let application = application();
        let Some(_apache) = Neighbour::apache(8088, "") else { return };
        let documented = documented("yaml", "apache:");
        let overlay = documented.replacen(
            "upstreams:\n",
            &format!(
                "upstreams:\n  app: {{ protocol: http, endpoints: ['{}'], health: {{ ready: null }} }}\n",
                application.address
            ),
            1,
        );
        let _site = Site::start("root: /da/\nexternal hostname: justice.example.com\n", &overlay);

        assert_eq!(body(&get("/")), "the rest of the site\n");
        assert_eq!(status(&get("/dashboard")), 404, "Apache's own");
        let old = get("/old");
        assert_eq!(header(&old, "location").as_deref(), Some("http://justice.example.com/new.html"), "{old}");
        assert_eq!(told(&get("/da/x"))[0], "GET /da/x HTTP/1.1");
        assert_eq!(told(&get("/da"))[0], "GET /da HTTP/1.1");
    });
}

#[test]
fn certbot_that_listens_behind_us_proves_the_host_as_documented() {
    in_network(|| {
        let _certbot = Backend::start_on(std::net::TcpListener::bind("127.0.0.1:8888").unwrap(), |mut stream| {
            if let Some(request) = super::super::support::read_request(&mut stream) {
                let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
                drop(write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len()));
            }
        });
        let lineage = folder();
        let mut overlay = documented("yaml", "acme-challenge");
        let certificates = documented("yaml", "privkey.pem");
        let site =
            Site::start("use https: True\nuse lets encrypt: False\nexternal hostname: justice.example.com\n", &overlay);
        // As the authority does it.
        let ordered = || {
            let fetched = clients::curl(&[
                "-kL",
                "--connect-to",
                "::127.0.0.1:",
                "http://justice.example.com/.well-known/acme-challenge/token",
            ]);
            fetched.expect("curl")
        };
        assert_eq!(ordered(), "GET /.well-known/acme-challenge/token HTTP/1.1");

        // What certbot makes of it: links, which a renewal turns to other files.
        let live = lineage.path().join("live/justice.example.com");
        fs::create_dir_all(&live).unwrap();
        let renew = |name: &str| {
            let made = clients::certificate(lineage.path(), name, &["justice.example.com"]);
            for (link, file) in [("fullchain.pem", format!("{name}.crt")), ("privkey.pem", format!("{name}.key"))] {
                drop(fs::remove_file(live.join(link)));
                std::os::unix::fs::symlink(lineage.path().join(file), live.join(link)).unwrap();
            }
            made
        };
        let first = renew("first");
        overlay += &certificates
            .replace("tls:\n", "tls:\n  storage: storage\n")
            .replace("/etc/letsencrypt", lineage.path().to_str().unwrap());
        site.served.apply(&overlay);
        let serves = |certificate| {
            let client = clients::client(&[certificate], &[]);
            clients::block_on(clients::tls_connect(([127, 0, 0, 1], 443).into(), HOST, client)).is_ok()
        };
        wait_for("the certificate", || serves(&first));
        let second = renew("second");
        site.served.order(&["reload"]);
        wait_for("the renewed certificate", || serves(&second));
        assert_eq!(ordered(), "GET /.well-known/acme-challenge/token HTTP/1.1");
    });
}

/// Requests through a proxy at port 80 that contains what `explain --outer` prints.
fn works_through_the_outer_proxy() {
    let mut browser = connect_from(CLIENT, ([127, 0, 0, 1], 80).into());
    write!(
        browser,
        "GET /da/a%2Fb//c?d=%20 HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: gopher\r\nForwarded: for=6.6.6.6\r\n\r\n"
    )
    .unwrap();
    let told = told(&read_response(&mut browser));
    assert_eq!(told[0], "GET /da/a%2Fb//c?d=%20 HTTP/1.1", "as it came");
    for line in ["host: justice.example.com", "x-forwarded-host: justice.example.com", "x-forwarded-proto: http"] {
        assert!(says(&told, line), "{line} is missing: {told:?}");
    }
    assert!(!told.iter().any(|line| line.contains("evil.example") || line.starts_with("forwarded:")), "{told:?}");
    let clients: Vec<_> = told.iter().filter(|line| line.starts_with("x-forwarded-for:")).collect();
    assert_eq!(
        clients,
        [&format!("x-forwarded-for: {CLIENT}")],
        "who connected to the proxy, whatever it says of itself"
    );
    assert!(!told.iter().any(|line| line.contains("6.6.6.6")), "{told:?}");
    let (head, back) = upgrade(connect(([127, 0, 0, 1], 80).into()), "/da/ws/socket.io/?EIO=4", HOST);
    assert_eq!((status(&head), back.as_str()), (101, "hello"));
    assert!(body(&get("/da/ws/socket.io/?transport=polling")).starts_with("GET /socket.io/?transport=polling "));

    let large = noise(3 << 20);
    let mut stream = connect(([127, 0, 0, 1], 80).into());
    write!(
        stream,
        "POST /da/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        large.len()
    )
    .unwrap();
    stream.write_all(&large).unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
    assert!(answer.windows(64).any(|part| part == &large[large.len() - 64..]), "the whole body has come back");
    // Apache says nothing before it has seen some of the body.
    let head = format!("POST /da/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 17000000\r\nConnection: close\r\n\r\n");
    let refused = raw(([127, 0, 0, 1], 80).into(), [head.into_bytes(), vec![b'x'; 17_000_000]].concat());
    assert!(refused.is_empty() || status(&refused) == 413, "{refused}");
    assert_eq!(status(&get("/dashboard")), 404);
}

/// What `explain --outer` prints for the site.
fn printed(outer: &str, folder: &Path) -> String {
    let (config, overlay) = (folder.join("config.yml"), folder.join("overlay.yml"));
    fs::write(&config, BEHIND).unwrap();
    fs::write(&overlay, "trusted_proxies: [loopback]\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vestibule"))
        .args(["explain", "--outer", outer, "--docassemble"])
        .arg(config)
        .arg("--config")
        .arg(overlay)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn behind(start: impl FnOnce(&str) -> Option<Neighbour>, outer: &str) {
    let application = application();
    let _sockets = Backend::start_on(std::net::TcpListener::bind("127.0.0.1:5000").unwrap(), socket_server);
    let folder = folder();
    let Some(_neighbour) = start(&printed(outer, folder.path())) else { return };
    let _site = Site::start(BEHIND, &overlay(&application, "trusted_proxies: [loopback]\n"));
    works_through_the_outer_proxy();
}

#[test]
fn what_is_printed_for_an_outer_apache_works() {
    in_network(|| behind(|text| Neighbour::apache(80, text), "apache"));
}

#[test]
fn what_is_printed_for_an_outer_nginx_works() {
    in_network(|| {
        behind(
            |text| {
                let (http, server) = text.split_once("# and in the server { } of the site:").unwrap();
                Neighbour::nginx(80, http, server)
            },
            "nginx",
        );
    });
}

#[test]
fn what_is_printed_for_an_outer_caddy_works() {
    in_network(|| {
        behind(
            |text| {
                let program = program("caddy")?;
                let folder = folder();
                let file = folder.path().join("Caddyfile");
                fs::write(
                    &file,
                    format!(
                        "{{\n    admin off\n    auto_https off\n}}\nhttp://{HOST}:80 {{\n{text}\nrespond 404\n}}\n"
                    ),
                )
                .unwrap();
                let file = file.to_str().unwrap().to_owned();
                Some(Neighbour::start(folder, &program, &["run", "--config", &file, "--adapter", "caddyfile"], 80))
            },
            "caddy",
        );
    });
}

/// The release line of 2018 and 2019: its WSGI file, by its path, in the servers of the documentation.
#[test]
fn docassemble_wsgi_of_2018_under_uwsgi_and_under_gunicorn_as_documented() {
    in_network(|| {
        let Some((uwsgi, gunicorn)) = program("uwsgi").zip(program("gunicorn")) else { return };
        let folder = folder();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(folder.path().join("webapp")).unwrap();
        fs::write(
            at("webapp/docassemble.wsgi"),
            "import os\nimport sys\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))\n\
             from there import app as application\n",
        )
        .unwrap();
        fs::write(
            at("webapp/there.py"),
            format!(
                "def app(environ, start):\n    if environ['PATH_INFO'].endswith('/file'):\n        \
                 start('200 OK', [('X-Sendfile', '{}'), ('Content-Length', '4'), ('Content-Type', 'text/plain')])\n        \
                 return [b'']\n    start('200 OK', [('Content-Type', 'text/plain')])\n    \
                 return [(environ['SCRIPT_NAME'] + ' ' + environ['PATH_INFO']).encode()]\n",
                at("sent.txt")
            ),
        )
        .unwrap();
        fs::write(at("sent.txt"), "sent").unwrap();

        let ini = documented("ini", "[uwsgi]")
            .replace("/usr/share/docassemble/webapp", &at("webapp"))
            .replace("/var/run/uwsgi/docassemble.sock", &at("webapp/docassemble.sock"));
        Command::new("chown").args(["-R", "www-data", &at("webapp")]).status().unwrap();
        fs::write(at("uwsgi.ini"), ini).unwrap();
        let mut command = Command::new(uwsgi);
        command.env_remove("PYTHONHOME").args(["--ini", &at("uwsgi.ini"), "--die-on-term"]);
        let _uwsgi = Peer::start(&mut command, &folder.path().join("uwsgi.log"));
        let config = "web server: apache\nroot: /da/\n";
        let site = Site::start(
            config,
            &format!(
                "upstreams: {{ app: {{ endpoints: ['unix:{}'], health: {{ ready: null }} }} }}\n",
                at("webapp/docassemble.sock")
            ),
        );
        wait_for("uWSGI to answer", || status(&get("/da/x")) == 200);
        assert!(get("/da/x").contains("/da /x"), "{}", get("/da/x"));
        assert_eq!(body(&get("/da/file")), "sent");
        assert_eq!(header(&get("/da/file"), "x-sendfile"), None);

        fs::write(
            at("webapp/wsgi_of_docassemble.py"),
            format!(
                "from runpy import run_path\napplication = run_path('{}')['application']\n",
                at("webapp/docassemble.wsgi")
            ),
        )
        .unwrap();
        let line = documented("sh", "gunicorn --threads").replace("/usr/share/docassemble/webapp", &at("webapp"));
        let line = line.trim().replacen(" gunicorn ", &format!(" exec {} ", gunicorn.display()), 1);
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        let _gunicorn = Peer::start(&mut command, &folder.path().join("gunicorn.log"));
        wait_for("gunicorn to listen", || TcpStream::connect("127.0.0.1:8000").is_ok());
        site.served
            .apply("upstreams: { app: { protocol: http, endpoints: ['127.0.0.1:8000'], health: { ready: null } } }\n");
        wait_for("gunicorn to answer", || status(&get("/da/x")) == 200);
        // As under uWSGI: docassemble's own routes know nothing of the root.
        assert!(get("/da/x").contains("\r\n/da /x\r\n"), "{}", get("/da/x"));
        assert_eq!(body(&get("/da/file")), "sent");
        assert_eq!(body(&ask("GET", "/da/file", "Range: bytes=1-2\r\n")), "en");
    });
}
