"""Front ends on free ports before one backend, each as an operator would write it: plain and TLS, h1 and h2."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30
#: `limits.memory` of Vestibule, in MiB: what `auto` is with 1 GiB.
MEMORY = 512


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def certificate(folder):
    """A certificate for localhost that nobody else trusts."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    if not key.exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
            + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        (folder / "both.pem").write_text(certificate.read_text() + key.read_text())
        for file in (key, folder / "both.pem"):
            file.chmod(0o600)
    return certificate, key


class Front:
    """A front end while it runs. `plain` and `tls` are its ports."""

    def __init__(self, name, folder, backend, command=None):
        """`command` writes its configuration and answers its command, as those in `FRONTS`, where another one is wanted."""
        self.name, self.folder, self.backend = name, folder / name, backend
        self.command = command or FRONTS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self.plain, self.tls = free_port(), free_port()
        self.certificate, self.key = certificate(self.folder)
        self.process, self.begun = None, []

    def start(self):
        self.log = open(self.folder / "output.log", "wb")
        self.process = subprocess.Popen(self.command(self), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, cwd=self.folder)
        end = time.monotonic() + PATIENCE
        for port in (self.plain, self.tls):
            while True:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended: {(self.folder / 'output.log').read_text()[-2000:]}")
                try:
                    socket.create_connection(("127.0.0.1", port), 0.5).close()
                    break
                except OSError:
                    if time.monotonic() > end:
                        self.stop()
                        raise RuntimeError(f"{self.name} does not listen") from None
                    time.sleep(0.05)
        self.begun = self.processes()
        return self

    def stands(self):
        """Whether all that was there when it listened still is, and nothing panicked."""
        # Apache ends spare processes as it likes.
        kept = self.name == "apache" or set(self.begun) <= set(self.processes())
        return self.process.poll() is None and kept and "panicked" not in (self.folder / "output.log").read_text(errors="replace")

    def processes(self):
        """This front end's own process and those it began."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    waiting += [int(child) for child in thread.read_text().split()]
                except OSError:
                    pass
        return found

    def memory(self):
        """Resident memory of all its processes, in KiB; what they share is counted once (PSS)."""
        total = 0
        for pid in self.processes():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        return total

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                for pid in self.processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()


def vestibule(front):
    (front.folder / "vestibule.yml").write_text(
        f"listeners:\n  - address: '127.0.0.1:{front.plain}'\n  - {{ address: '127.0.0.1:{front.tls}', tls: true }}\n"
        f"tls:\n  certificates: [{{ files: {{ certificate: {front.certificate}, key: {front.key} }} }}]\n"
        f"  storage: {front.folder}/storage\n"
        f"upstreams: {{ app: {{ endpoints: ['127.0.0.1:{front.backend}'], concurrency: 16 }} }}\n"
        "routes: [{ prefix: /, upstream: app }]\n"
        f"access_log: {{ path: {front.folder}/access.log, format: json, query: whole }}\nspool: {{ path: {front.folder}/spool }}\n"
        f"admin: unix:{front.folder}/admin.sock\nworkers: 1\n"
        # As on the internet: nobody is exempt.
        f"limits: {{ memory: {MEMORY}MiB, exempt: [] }}\n"
    )
    program = os.environ.get("VESTIBULE_BINARY") or str(ROOT / "target/release/vestibule")
    return [program, "serve", "--config", str(front.folder / "vestibule.yml")]


def nginx(front):
    folder = front.folder
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1; user root;\n"
        f"events {{ worker_connections 8192; }}\nhttp {{ access_log {folder}/access.log; {temporary}\n"
        f"upstream app {{ server 127.0.0.1:{front.backend}; keepalive 16; }}\n"
        f"server {{ listen 127.0.0.1:{front.plain}; listen 127.0.0.1:{front.tls} ssl http2;\n"
        f"ssl_certificate {front.certificate}; ssl_certificate_key {front.key};\n"
        "location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $host;\n"
        "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; } } }\n"
    )
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def haproxy(front):
    (front.folder / "haproxy.cfg").write_text(
        "global\n  log stdout format raw local0\n  nbthread 1\n  maxconn 8192\n"
        "defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 3s\n  timeout client 60s\n"
        "  timeout server 60s\n  timeout http-request 30s\n  http-reuse always\n"
        f"frontend front\n  bind 127.0.0.1:{front.plain}\n  bind 127.0.0.1:{front.tls} ssl crt {front.folder}/both.pem alpn h2,http/1.1\n"
        "  http-request set-header X-Forwarded-For %[src]\n"
        "  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n  default_backend app\n"
        f"backend app\n  server app 127.0.0.1:{front.backend} maxconn 16\n"
    )
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(front.folder / "haproxy.cfg")]


def caddy(front):
    (front.folder / "Caddyfile").write_text(
        "{\n  admin off\n  auto_https off\n  skip_install_trust\n}\n"
        f"http://127.0.0.1:{front.plain}, http://localhost:{front.plain}, http://:{front.plain} {{\n  bind 127.0.0.1\n"
        f"  log {{\n    output file {front.folder}/access.log\n  }}\n  reverse_proxy 127.0.0.1:{front.backend}\n}}\n"
        f"https://:{front.tls} {{\n  bind 127.0.0.1\n  tls {front.certificate} {front.key}\n  reverse_proxy 127.0.0.1:{front.backend}\n}}\n"
    )
    return [shutil.which("caddy") or "/usr/bin/caddy", "run", "--config", str(front.folder / "Caddyfile"), "--adapter", "caddyfile"]


def apache(front):
    modules = "mpm_event authz_core headers proxy proxy_http reqtimeout socache_shmcb ssl http2".split()
    load = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in modules)
    proxy = (
        f"ProxyPreserveHost On\nProxyPass / http://127.0.0.1:{front.backend}/\n"
        "RequestHeader set X-Forwarded-Proto expr=%{REQUEST_SCHEME}\n"
    )
    (front.folder / "apache.conf").write_text(
        f"ServerRoot /etc/apache2\nDefaultRuntimeDir {front.folder}\nPidFile {front.folder}/apache.pid\n"
        f"ErrorLog {front.folder}/error.log\nServerName localhost\nUser www-data\nGroup www-data\n{load}"
        "StartServers 1\nServerLimit 2\nThreadsPerChild 64\nMaxRequestWorkers 128\n"
        # As Debian has it.
        "RequestReadTimeout header=20-40,minrate=500 body=10,minrate=500\n"
        f'LogFormat "%h %t \\"%r\\" %>s %b" common\nCustomLog {front.folder}/access.log common\n'
        f"SSLSessionCache shmcb:{front.folder}/ssl(512000)\nMutex file:{front.folder}\n"
        f"Listen 127.0.0.1:{front.plain}\nListen 127.0.0.1:{front.tls}\n"
        f"<VirtualHost 127.0.0.1:{front.plain}>\n{proxy}</VirtualHost>\n"
        f"<VirtualHost 127.0.0.1:{front.tls}>\nProtocols h2 http/1.1\nSSLEngine on\n"
        f"SSLCertificateFile {front.certificate}\nSSLCertificateKeyFile {front.key}\n{proxy}</VirtualHost>\n"
    )
    return [shutil.which("apache2") or "/usr/sbin/apache2", "-f", str(front.folder / "apache.conf"), "-DFOREGROUND"]


FRONTS = {"vestibule": vestibule, "nginx": nginx, "haproxy": haproxy, "caddy": caddy, "apache": apache}
