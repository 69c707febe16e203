#!/usr/bin/env python3
"""Runs docassemble's acceptance cases behind Vestibule, one variant after another.

  run.py                             all twelve runs
  run.py --only root/uwsgi,tls/http  these runs; a variant alone (`root`) means both wires
  run.py --long                      websockets are held open for 70 s instead of 3 s
  run.py --keep                      leaves docassemble running in the last variant

For each variant docassemble is set up (setup.sh) and started (up.sh); for each wire, uwsgi and
http, Vestibule is started with a configuration made for it, check.py and sio_check.py walk
through it, and it is stopped by TERM, which has to end it with status 0. Configurations and logs
are kept in target/docassemble/VARIANT-WIRE/. Exit status: 0 all passed, 1 something failed,
69 docassemble cannot be installed here.

Environment: VESTIBULE (target/release/vestibule), HTTP_PORT (8080), HTTPS_PORT (8443), and what
env.sh names (DA_STATE, DA_VENV, DA_HTTP_PORT, DA_WS_PORT, ...).
"""
import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / 'target' / 'docassemble'
VESTIBULE = Path(os.environ.get('VESTIBULE', ROOT / 'target' / 'release' / 'vestibule')).absolute()
HTTP_PORT = int(os.environ.get('HTTP_PORT', '8080'))
HTTPS_PORT = int(os.environ.get('HTTPS_PORT', '8443'))
PLAIN = f'http://127.0.0.1:{HTTP_PORT}'
SECURE = f'https://localhost:{HTTPS_PORT}'
# Where the proxy in front of Vestibule connects from, in the variant `behind`: not the client's own
# address, so that trust in the one is not trust in the other.
PROXY_ADDRESS = '127.0.0.2'


@dataclass
class Variant:
    """What docassemble is started with, what is checked, and where."""
    up: list = field(default_factory=list)
    check: list = field(default_factory=list)
    origin: str = PLAIN
    root: str = '/'

    @property
    def base(self):
        return self.origin + self.root


VARIANTS = {
    'root': Variant(),
    'da': Variant(up=['--root', '/da/'], root='/da/'),
    'tls': Variant(up=['--https', '--url-root', SECURE], check=['--expect-https'], origin=SECURE),
    'sendfile': Variant(up=['--web-server', 'apache'], check=['--files', 'sendfile']),
    'app': Variant(up=['--no-xsendfile'], check=['--files', 'app']),
    'behind': Variant(up=['--behind-https', '--url-root', SECURE], check=['--expect-https'], origin=SECURE),
}
WIRES = ('uwsgi', 'http')

CONFIGURATION = """\
# {name}: made by tests/docassemble/run.py
listeners:
  - address: "127.0.0.1:{port}"
    tls: {tls}
{host}
tls:
{certificates}
  storage: {private}/storage
trusted_proxies: [{trusted}]
upstreams:
  app:
    protocol: {wire}
    endpoints: ["{endpoint}"]
    concurrency: 6
    health: {{ path: {root}health_check }}
  websockets:
    endpoints: ["127.0.0.1:{websockets}"]
routes:
  - prefix: {root}ws/
    strip_prefix: true
    upstream: websockets
  - prefix: {root}
    upstream: app
    body_limit: 16MiB
    files: [{state}, {venv}, /usr, /tmp]
access_log: {{ path: {output}/access.log, format: combined }}
spool: {{ path: {private}/spool }}
admin: unix:{private}/admin.sock
"""

# A proxy that ends TLS and says so. It passes everything on as it comes: what is collected and limited is collected and
# limited by Vestibule.
NGINX = """\
daemon off; master_process off; pid {private}/nginx.pid; error_log {output}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off; merge_slashes off; client_max_body_size 0; large_client_header_buffers 4 32k;
  client_body_temp_path {private}/t1; proxy_temp_path {private}/t2; fastcgi_temp_path {private}/t3;
  uwsgi_temp_path {private}/t4; scgi_temp_path {private}/t5;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{secure} ssl;
    ssl_certificate {private}/localhost.crt; ssl_certificate_key {private}/localhost.key;
    location / {{
      proxy_pass http://127.0.0.1:{plain};
      proxy_bind {address};
      proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 300s;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""


def environment():
    """env.sh's settings, as the scripts see them."""
    text = subprocess.check_output(['bash', '-c', 'set -a; . ./env.sh; env -0'], cwd=HERE, text=True)
    return dict(entry.split('=', 1) for entry in text.split('\0') if '=' in entry)


class Server:
    """A process in the foreground with its output in a file."""

    def __init__(self, command, log, port):
        self.log, self.port = log, port
        with open(log, 'w', encoding='utf-8') as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def wait_until_it_listens(self, seconds=20):
        deadline = time.time() + seconds
        while time.time() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f'it ended with status {self.process.returncode} at its start:\n{tail(self.log)}')
            try:
                socket.create_connection(('127.0.0.1', self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f'nothing listens on port {self.port} after {seconds} s:\n{tail(self.log)}')

    def stop(self, seconds=30):
        """Asks it to stop; its exit status, or None when it had to be killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def tail(path, lines=15):
    return '\n'.join('    ' + line for line in Path(path).read_text(errors='replace').splitlines()[-lines:])


def port_is_taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


def make_certificate(directory):
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '7',
                    '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1',
                    '-keyout', directory / 'localhost.key', '-out', directory / 'localhost.crt'],
                   check=True, capture_output=True)


def configuration(name, variant, wire, env, output, private):
    tls = name == 'tls'
    return CONFIGURATION.format(
        name=f'{name}/{wire}', wire=wire, root=variant.root, output=output, private=private,
        port=HTTPS_PORT if tls else HTTP_PORT, tls='true' if tls else 'false',
        host='host: localhost' if tls else '# any host',
        certificates=f'  certificates:\n    - files: {{ certificate: {private}/localhost.crt, key: {private}/localhost.key }}'
        if tls else '  # none: this variant speaks plain HTTP',
        trusted=f'{PROXY_ADDRESS}/32' if name == 'behind' else '',
        endpoint=f'unix:{env["RUN"]}/docassemble.sock' if wire == 'uwsgi' else f'127.0.0.1:{env["DA_HTTP_PORT"]}',
        websockets=env['DA_WS_PORT'], state=env['DA_STATE'], venv=env['DA_VENV'])


class Report:
    """Counts of one run: cases by the script they belong to, and the lines of those that failed."""

    def __init__(self, name):
        self.name, self.counts, self.failures = name, {}, []

    def add(self, column, passed, failures):
        before = self.counts.get(column, (0, 0))
        self.counts[column] = (before[0] + passed, before[1] + passed + len(failures))
        self.failures += failures
        for line in failures:
            print(f'     {column}: {line}', flush=True)

    @property
    def passed(self):
        return sum(passed for passed, _ in self.counts.values())


def run_script(report, column, command, log, seconds):
    """Runs one of the check scripts, which print `PASS name` and `FAIL name why`."""
    why = None
    with open(log, 'w', encoding='utf-8') as out:
        try:
            status = subprocess.run(command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            status, why = None, f'not done after {seconds} s'
    lines = Path(log).read_text(errors='replace').splitlines()
    failures = [line[5:] for line in lines if line.startswith('FAIL ')]
    passed = sum(line.startswith('PASS ') for line in lines)
    if why is None and status != 0 and not failures:
        why = f'ended with status {status}'
    if why is None and passed + len(failures) == 0:
        why = 'ran no case'
    if why:
        failures.append(f'{Path(command[1]).name} {why}; see {log}\n{tail(log)}')
    report.add(column, passed, failures)


def run(name, wire, env, python, hold):
    """One variant over one wire, with docassemble already up."""
    variant, report = VARIANTS[name], Report(f'{name}/{wire}')
    output = OUTPUT / f'{name}-{wire}'
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    private = Path(tempfile.mkdtemp(prefix='vestibule-'))
    servers = []
    try:
        private.chmod(0o755)   # the workers are www-data
        make_certificate(private)
        (output / 'vestibule.yml').write_text(configuration(name, variant, wire, env, output, private))
        port = HTTPS_PORT if name == 'tls' else HTTP_PORT
        for taken in {port, HTTPS_PORT if name == 'behind' else port}:
            if port_is_taken(taken):
                raise RuntimeError(f'port {taken} is taken by another program; set HTTP_PORT and HTTPS_PORT')
        vestibule = Server([VESTIBULE, 'serve', '--config', output / 'vestibule.yml'], output / 'vestibule.log', port)
        servers.append(vestibule)
        vestibule.wait_until_it_listens()
        if name == 'behind':
            (output / 'nginx.conf').write_text(NGINX.format(private=private, output=output, secure=HTTPS_PORT, plain=HTTP_PORT,
                                                            address=PROXY_ADDRESS))
            nginx = shutil.which('nginx') or '/usr/sbin/nginx'
            servers.append(Server([nginx, '-c', output / 'nginx.conf', '-e', output / 'nginx.log'], output / 'nginx.out', HTTPS_PORT))
            servers[-1].wait_until_it_listens()

        run_script(report, 'check', [python, 'check.py', variant.base, *variant.check], output / 'check.log', 600)
        run_script(report, 'socket.io', [python, 'sio_check.py', variant.base, '--hold', str(hold)], output / 'sio.log', 300 + 4 * hold)
        if name == 'behind':
            run_script(report, 'forwarded', [python, 'forwarded_check.py', PLAIN + '/', PROXY_ADDRESS], output / 'forwarded.log', 60)

        for server in reversed(servers[1:]):
            server.stop()
        status = vestibule.stop()
        ended = {0: [], None: ['it was still there 30 s after TERM']}.get(status, [f'it ended with status {status} after TERM'])
        report.add('stop', int(status == 0), ended)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        report.add('start', 0, [str(error)])
    finally:
        for server in servers:
            server.stop(1)
        shutil.rmtree(private, ignore_errors=True)
    return report


def selected(only):
    """The runs to make, grouped by variant, in the order of VARIANTS: docassemble is started once a variant."""
    known = [(name, wire) for name in VARIANTS for wire in WIRES]
    if not only:
        return known
    wanted = re.split(r'[,\s]+', only.strip())
    for word in wanted:
        if word not in VARIANTS and tuple(word.split('/')) not in known:
            sys.exit(f'no run is named `{word}`; there are: ' + ' '.join('/'.join(one) for one in known))
    return [(name, wire) for name, wire in known if name in wanted or f'{name}/{wire}' in wanted]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='')
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--keep', action='store_true')
    arguments = parser.parse_args()
    runs = selected(arguments.only)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # so that what was started is stopped

    setup = subprocess.run([HERE / 'setup.sh'], stdin=subprocess.DEVNULL).returncode
    if setup:
        sys.exit(setup)
    if not VESTIBULE.is_file():
        sys.exit(f'{VESTIBULE} is not there; `cargo build --release` makes it')

    env = environment()
    python = env['DA_VENV'] + '/bin/python'
    hold = 70 if arguments.long else 3
    reports, running, started = [], None, time.time()
    try:
        for name, wire in runs:
            print(f'--- {name}/{wire}', flush=True)
            if running != name:
                subprocess.run([HERE / 'down.sh'], stdout=subprocess.DEVNULL, check=True)
                up = subprocess.run([HERE / 'up.sh', *VARIANTS[name].up], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                if up.returncode:
                    report = Report(f'{name}/{wire}')
                    report.add('start', 0, [f'docassemble: {up.stderr.strip()}'])
                    reports.append((report, 0.0))
                    running = None
                    continue
                running = name
            begun = time.time()
            report = run(name, wire, env, python, hold)
            reports.append((report, time.time() - begun))
    finally:
        if not arguments.keep:
            subprocess.run([HERE / 'down.sh'], stdout=subprocess.DEVNULL)

    columns = ('check', 'socket.io', 'forwarded', 'stop')
    print(f'\n{"run":<16}' + ''.join(f'{column:>11}' for column in columns) + f'{"seconds":>9}')
    for report, seconds in reports:
        cells = ('/'.join(map(str, report.counts[column])) if column in report.counts else '-' for column in columns)
        print(f'{report.name:<16}' + ''.join(f'{cell:>11}' for cell in cells) + f'{seconds:>9.0f}'
              + ('   did not start' if 'start' in report.counts else ''))
    passed, failed = sum(r.passed for r, _ in reports), sum(len(r.failures) for r, _ in reports)
    print(f'in {time.time() - started:.0f} s; logs are in {OUTPUT}')
    print(f'{passed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
