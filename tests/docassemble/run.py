#!/usr/bin/env python3
"""Runs docassemble's acceptance cases behind Vestibule, one variant after another.

  run.py                             all runs
  run.py --only root/uwsgi,front     these runs; a variant alone (`root`) means all its ways
  run.py --long                      websockets are held open for 70 s instead of 3 s
  run.py --keep                      leaves docassemble running in the last variant

For each variant docassemble is set up (setup.sh) and started (up.sh); for each way, Vestibule is
started with a configuration made for it, check.py and sio_check.py walk through it, and it is
stopped by TERM, which has to end it with status 0. The ways are `uwsgi` and `http`, a configuration
of Vestibule's own over that wire, and `config`, docassemble's own config.yml, with an overlay for
what is elsewhere than in docassemble's image: ports, sockets, folders. Configurations and logs are
kept in target/docassemble/VARIANT-WAY/. Exit status: 0 all passed, 1 something failed,
69 docassemble cannot be installed here.

Environment: VESTIBULE (target/release/vestibule), HTTP_PORT (8080), HTTPS_PORT (8443), and what
env.sh names (DA_STATE, DA_VENV, DA_HTTP_PORT, DA_WS_PORT, ...).
"""
import argparse
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
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
    ways: tuple = ('uwsgi', 'http')

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
# docassemble's own configuration, in the deployments that there are.
CONFIG = ('config',)
VARIANTS |= {
    # Browsers come straight to Vestibule.
    'front': Variant(up=['--https', '--url-root', SECURE], check=['--expect-https'], origin=SECURE, ways=CONFIG),
    # HAProxy ends TLS.
    'balancer': Variant(up=['--behind-https', '--url-root', SECURE], check=['--expect-https'], origin=SECURE, ways=CONFIG),
    # Apache has the site, and forwards /da to Vestibule and /da/ws to docassemble's socket server.
    'apache-front': Variant(up=['--behind-https', '--root', '/da/', '--url-root', SECURE], check=['--expect-https'],
                            origin=SECURE, root='/da/', ways=CONFIG),
    # Vestibule has the site, and forwards what is not docassemble's to Apache.
    'apache-back': Variant(up=['--https', '--root', '/da/', '--url-root', SECURE], check=['--expect-https'],
                           origin=SECURE, root='/da/', ways=CONFIG),
}

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

# On docassemble's own configuration: what is not where docassemble's image has it.
OVERLAY = """\
# {name}: made by tests/docassemble/run.py
{listeners}
tls:
  certificates:
    - files: {{ certificate: {private}/localhost.crt, key: {private}/localhost.key }}
  storage: {private}/storage
{trusted}
upstreams:
  app: {{ endpoints: ["unix:{run}/docassemble.sock"] }}
{upstreams}
routes:
  - prefix: {root}
    files: [{state}, {venv}, /usr, /tmp]
{routes}
access_log: {{ path: {output}/access.log }}
spool: {{ path: {private}/spool }}
admin: unix:{private}/admin.sock
"""

# The whole of the outer Apache's part is what docassemble's documentation has for it.
APACHE = """\
ServerRoot {private}
PidFile {private}/apache.pid
Mutex file:{private}
ServerName localhost
Listen 127.0.0.1:{port}{https}
ErrorLog {output}/apache-error.log
CustomLog {output}/apache-access.log "%h %r %>s"
User www-data
Group www-data
{modules}
TypesConfig /etc/mime.types
DocumentRoot {private}/html
<Directory {private}/html>
  Require all granted
</Directory>
Redirect "/old" "http://localhost:{port}/new.html"
{forwarding}
"""
FORWARDING = """\
SSLEngine on
SSLCertificateFile {private}/localhost.crt
SSLCertificateKeyFile {private}/localhost.key
# A path with %2F is passed on, as it is without Apache in front.
AllowEncodedSlashes NoDecode
LimitRequestFieldSize 16384
LimitRequestLine 16384
# Not the client's own address, which is of this machine as well.
ProxySourceAddress {address}
RequestHeader set X-Forwarded-Proto https
RewriteEngine On
RewriteCond %{{REQUEST_URI}}  ^/da/ws/socket.io     [NC]
RewriteCond %{{QUERY_STRING}} transport=websocket [NC]
RewriteRule /da/ws/(.*) ws://localhost:{websockets}/$1 [P,L]
ProxyPass        /da/ws/ http://localhost:{websockets}/
ProxyPassReverse /da/ws/ http://localhost:{websockets}/
ProxyPass        /da http://localhost:{plain}/da nocanon
ProxyPassReverse /da http://localhost:{plain}/da
"""
MODULES = ('mpm_event', 'authz_core', 'env', 'mime', 'dir', 'alias', 'rewrite', 'headers', 'socache_shmcb', 'ssl', 'proxy',
           'proxy_http', 'proxy_wstunnel')
APACHE_PORT = int(os.environ.get('APACHE_PORT', '8088'))

HAPROXY = """\
global
  log stderr format raw local0 notice
  maxconn 500
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout tunnel 1h
frontend site
  bind 127.0.0.1:{secure} ssl crt {private}/localhost.pem alpn h2,http/1.1
  option forwardfor
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port {secure}
  default_backend vestibule
backend vestibule
  option httpchk
  http-check send meth GET uri /health_check ver HTTP/1.1 hdr Host 127.0.0.1
  server vestibule 127.0.0.1:{plain} source {address} check inter 2s
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


def program(name, *places):
    """Where `name` is installed; Debian keeps servers where an ordinary PATH does not lead."""
    found = shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)
    if found is None:
        raise RuntimeError(f'{name} is not installed; tests/packages.sh docassemble installs it')
    return found


def overlay(name, variant, env, output, private):
    """What is laid on docassemble's config.yml in the variant `name`."""
    plain, secure = f'"127.0.0.1:{HTTP_PORT}"', f'"127.0.0.1:{HTTPS_PORT}"'
    listeners = {'front': f'listeners: [{{ address: {plain}, redirect: https, https_port: {HTTPS_PORT} }}, {{ address: {secure}, tls: true }}]',
                 'apache-back': f'listeners: [{{ address: {secure}, tls: true }}]'}
    back = name == 'apache-back'
    return OVERLAY.format(
        name=name, root=variant.root, output=output, private=private, run=env['RUN'], state=env['DA_STATE'], venv=env['DA_VENV'],
        listeners=listeners.get(name, f'listeners: [{{ address: {plain} }}]'),
        trusted={'balancer': f'trusted_proxies: [{PROXY_ADDRESS}]', 'apache-front': f'trusted_proxies: [{PROXY_ADDRESS}]'}.get(name, ''),
        upstreams=f'  apache: {{ endpoints: ["127.0.0.1:{APACHE_PORT}"] }}' if back else '',
        routes='  - { prefix: /, upstream: apache }' if back else '')


def vestibule_command(name, way, variant, env, output, private):
    """Writes the configuration of a run, and answers how Vestibule is started with it."""
    file = output / 'vestibule.yml'
    if way == 'config':
        file.write_text(overlay(name, variant, env, output, private))
        return [VESTIBULE, 'serve', '--docassemble', Path(env['DA_STATE']) / 'config.yml', '--config', file]
    file.write_text(configuration(name, variant, way, env, output, private))
    return [VESTIBULE, 'serve', '--config', file]


def start_apache(name, env, output, private):
    front = name == 'apache-front'
    (private / 'html').mkdir()
    (private / 'html' / 'index.html').write_text('the rest of the site\n')
    forwarding = FORWARDING.format(private=private, websockets=env['DA_WS_PORT'], plain=HTTP_PORT,
                                   address=PROXY_ADDRESS) if front else ''
    modules = '\n'.join(f'LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so' for module in MODULES)
    port = HTTPS_PORT if front else APACHE_PORT
    (output / 'apache.conf').write_text(APACHE.format(private=private, output=output, port=port, modules=modules,
                                                      https=' https' if front else '', forwarding=forwarding))
    apache = program('apache2', '/usr/sbin/apache2')
    return Server([apache, '-D', 'FOREGROUND', '-f', output / 'apache.conf'], output / 'apache.out', port).wait_until_it_listens()


def start_neighbour(name, env, output, private):
    """The other server of a deployment, in front of Vestibule or behind it."""
    if name == 'behind':
        (output / 'nginx.conf').write_text(NGINX.format(private=private, output=output, secure=HTTPS_PORT, plain=HTTP_PORT,
                                                        address=PROXY_ADDRESS))
        command = [program('nginx', '/usr/sbin/nginx'), '-c', output / 'nginx.conf', '-e', output / 'nginx.log']
        return Server(command, output / 'nginx.out', HTTPS_PORT).wait_until_it_listens()
    if name == 'balancer':
        (private / 'localhost.pem').write_text((private / 'localhost.crt').read_text() + (private / 'localhost.key').read_text())
        (output / 'haproxy.cfg').write_text(HAPROXY.format(private=private, secure=HTTPS_PORT, plain=HTTP_PORT, address=PROXY_ADDRESS))
        command = [program('haproxy', '/usr/sbin/haproxy'), '-db', '-f', output / 'haproxy.cfg']
        return Server(command, output / 'haproxy.out', HTTPS_PORT).wait_until_it_listens()
    if name.startswith('apache-'):
        return start_apache(name, env, output, private)
    return None


def rest_of_the_site(report):
    """In front of Apache: what is not docassemble's is Apache's, and its redirects stay on the site."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    failures, passed = [], 0
    for path, expected in {'/': (200, None, b'the rest of the site\n'), '/old': (302, f'{SECURE}/new.html', None),
                           '/dashboard': (404, None, None), '/xaccel/etc/passwd': (404, None, None)}.items():
        connection = http.client.HTTPSConnection('localhost', HTTPS_PORT, context=context, timeout=20)
        connection.request('GET', path)
        response = connection.getresponse()
        body = response.read()
        got = (response.status, response.getheader('Location'), body if expected[2] else None)
        connection.close()
        if got == expected:
            passed += 1
        else:
            failures.append(f'{path}: got {got}, expected {expected}')
    report.add('apache', passed, failures)


def own_reader(report, env, private):
    """A value that is kept elsewhere comes through docassemble's own reader, in docassemble's own Python."""
    file = private / 'elsewhere.yml'
    file.write_text('secretkey: s3cr3t\nroot: /here/\nconfig from:\n  root: /fetched/\n')
    shutil.chown(file, 'www-data')
    output = subprocess.run([VESTIBULE, 'explain', '--docassemble', file], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            env={**os.environ, 'DA_PYTHON': env['DA_VENV'],
                                 'LD_LIBRARY_PATH': env['DA_PYTHON_COPY'] + '/lib'})
    right = output.returncode == 0 and '/fetched/' in output.stdout and 's3cr3t' not in output.stdout + output.stderr
    report.add('reader', int(right), [] if right else [f'explain said: {output.stdout}{output.stderr}'])


def run(name, way, env, python, hold):
    """One variant in one way, with docassemble already up."""
    variant, report = VARIANTS[name], Report(f'{name}/{way}')
    output = OUTPUT / f'{name}-{way}'
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    private = Path(tempfile.mkdtemp(prefix='vestibule-'))
    servers = []
    try:
        private.chmod(0o755)   # the workers are www-data
        make_certificate(private)
        command = vestibule_command(name, way, variant, env, output, private)
        port = HTTPS_PORT if name in ('tls', 'front', 'apache-back') else HTTP_PORT
        for taken in {HTTP_PORT, HTTPS_PORT, APACHE_PORT} if way == 'config' else {port, HTTPS_PORT if name == 'behind' else port}:
            if port_is_taken(taken):
                raise RuntimeError(f'port {taken} is taken by another program; set HTTP_PORT, HTTPS_PORT and APACHE_PORT')
        vestibule = Server(command, output / 'vestibule.log', port)
        servers.append(vestibule)
        vestibule.wait_until_it_listens()
        neighbour = start_neighbour(name, env, output, private)
        if neighbour:
            servers.append(neighbour)

        run_script(report, 'check', [python, 'check.py', variant.base, *variant.check], output / 'check.log', 600)
        run_script(report, 'socket.io', [python, 'sio_check.py', variant.base, '--hold', str(hold)], output / 'sio.log', 300 + 4 * hold)
        if name in ('behind', 'balancer'):
            # With a name of its own a site is told no other.
            host = [f'localhost:{HTTPS_PORT}'] if name == 'balancer' else []
            run_script(report, 'forwarded', [python, 'forwarded_check.py', PLAIN + '/', PROXY_ADDRESS, *host], output / 'forwarded.log', 60)
        if name == 'apache-back':
            rest_of_the_site(report)
        if name == 'front':
            own_reader(report, env, private)

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
    known = [(name, way) for name, variant in VARIANTS.items() for way in variant.ways]
    if not only:
        return known
    wanted = re.split(r'[,\s]+', only.strip())
    for word in wanted:
        if word not in VARIANTS and tuple(word.split('/')) not in known:
            sys.exit(f'no run is named `{word}`; there are: ' + ' '.join('/'.join(one) for one in known))
    return [(name, way) for name, way in known if name in wanted or f'{name}/{way}' in wanted]


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
        for name, way in runs:
            print(f'--- {name}/{way}', flush=True)
            if running != name:
                subprocess.run([HERE / 'down.sh'], stdout=subprocess.DEVNULL, check=True)
                up = subprocess.run([HERE / 'up.sh', *VARIANTS[name].up], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                if up.returncode:
                    report = Report(f'{name}/{way}')
                    report.add('start', 0, [f'docassemble: {up.stderr.strip()}'])
                    reports.append((report, 0.0))
                    running = None
                    continue
                running = name
            begun = time.time()
            report = run(name, way, env, python, hold)
            reports.append((report, time.time() - begun))
    finally:
        if not arguments.keep:
            subprocess.run([HERE / 'down.sh'], stdout=subprocess.DEVNULL)

    columns = ('check', 'socket.io', 'forwarded', 'apache', 'reader', 'stop')
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
