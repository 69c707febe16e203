//! Real application servers with a small WSGI application in them: see `application.py`.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use super::{Peer, program, wait_for};

/// uWSGI with the application at `/`, and once more at `/da`, its mount.
pub(crate) struct Uwsgi {
    pub(crate) peer: Peer,
    /// Where it speaks uwsgi.
    pub(crate) socket: PathBuf,
    pub(crate) tcp: SocketAddr,
    /// Its own HTTP server, which closes each connection without saying so.
    pub(crate) http: SocketAddr,
    folder: PathBuf,
}

impl Uwsgi {
    /// Starts it with `options` more, its files in `folder`. `None` where it is not installed.
    pub(crate) fn start(folder: &Path, options: &[&str]) -> Option<Self> {
        let program = program("uwsgi")?;
        fs::write(folder.join("application.py"), APPLICATION).unwrap();
        let (socket, log) = (folder.join("app.sock"), folder.join("uwsgi.log"));
        fs::write(folder.join("reload"), "").unwrap();
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            // Another Python on the PATH is none of its business.
            .env_remove("PYTHONHOME")
            .args(["--plugin", "python3", "--master", "--die-on-term", "--need-app", "--enable-threads"])
            .args(["--buffer-size", "32768", "--listen", "100", "--manage-script-name", "--single-interpreter"])
            .args(["--wsgi-file", "application.py", "--mount", "/da=application.py"])
            .args(["--socket", "app.sock", "--socket", "127.0.0.1:0", "--http-socket", "127.0.0.1:0"])
            .args(["--touch-reload", "reload"])
            .args(options);
        if !options.contains(&"--threads") {
            command.args(["--threads", "4"]);
        }
        let mut peer = Peer::start(&mut command, &log);
        let ready = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("uWSGI to start", || {
            assert!(!peer.has_ended(), "uWSGI has ended: {}", ready());
            ready().contains("spawned uWSGI worker 1")
        });
        let log = ready();
        let ports: Vec<SocketAddr> = log
            .lines()
            .filter_map(|line| line.split_once("bound to TCP address ")?.1.split(' ').next()?.parse().ok())
            .collect();
        let [tcp, http] = ports[..] else { panic!("two TCP sockets expected: {log}") };
        Some(Self { peer, socket, tcp, http, folder: folder.to_owned() })
    }

    /// Touches the file that makes it load the application anew.
    pub(crate) fn reload(&self) {
        let file = fs::File::options().write(true).open(self.folder.join("reload")).unwrap();
        // It looks at whole seconds.
        file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("uwsgi.log")).unwrap()
    }
}

/// gunicorn with threads that keep connections alive.
pub(crate) struct Gunicorn {
    pub(crate) peer: Peer,
    pub(crate) tcp: SocketAddr,
    pub(crate) socket: PathBuf,
}

impl Gunicorn {
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        let program = program("gunicorn")?;
        fs::write(folder.join("application.py"), APPLICATION).unwrap();
        let (socket, log) = (folder.join("gunicorn.sock"), folder.join("gunicorn.log"));
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .args(["--bind", "127.0.0.1:0", "--bind"])
            .arg(format!("unix:{}", socket.display()))
            .args(["--worker-class", "gthread", "--threads", "4", "--keep-alive", "30", "application:application"]);
        let mut peer = Peer::start(&mut command, &log);
        let ready = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("gunicorn to start", || {
            assert!(!peer.has_ended(), "gunicorn has ended: {}", ready());
            ready().contains("Booting worker")
        });
        let log = ready();
        let address = log.split_once("http://").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
        let tcp = address.unwrap_or_else(|| panic!("no address in {log}"));
        Some(Self { peer, tcp, socket })
    }
}

/// A listener and a route to the application at `endpoint`.
pub(crate) fn application_at(endpoint: impl std::fmt::Display, upstream: &str, route: &str) -> String {
    format!(
        "listeners: [{{ address: '127.0.0.1:0' }}]\n\
         upstreams: {{ app: {{ endpoints: ['{endpoint}'], {upstream} }} }}\n\
         routes: [{{ prefix: /, upstream: app, {route} }}]\n"
    )
}

/// What `application.py` said it saw.
pub(crate) fn seen(answer: &str) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::from_str(&super::body(answer)) {
        Ok(serde_json::Value::Object(seen)) => seen,
        _ => panic!("not what the application says: {answer}"),
    }
}

const APPLICATION: &str = include_str!("application.py");
