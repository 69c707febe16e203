#!/usr/bin/env python3
"""The same as restarts.py with the real docassemble: its uWSGI and its websockets under a real supervisord.

    python3 benches/restarts/docassemble.py [--peer vestibule,nginx] [--case restart,reload,order,websockets] [--seconds 40]

docassemble is installed and started as for its acceptance cases (tests/docassemble), with supervisord's programs as in its
image. Vestibule serves what docassemble's own config.yml says; nginx has the site that docassemble makes for it; HAProxy,
which has no uwsgi, goes to uWSGI's HTTP socket, and docassemble sends files itself. Of ten requests, two are POST: an answer to
a question of an interview, and what an open interview asks every few seconds. The others are an interview, pages and static
files, some of them with the cookie of a session. One client of live help holds a websocket.

Exit status 1: behind Vestibule, a request failed that must not. Needs root, as docassemble's acceptance cases do.
"""

import argparse
import asyncio
import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import quote, urlencode

from restarts import PATIENCE, RATE, ask_for, free_port, show, tell, until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SETUP = ROOT / "tests/docassemble"
VESTIBULE = os.environ.get("VESTIBULE_BINARY") or str(ROOT / "target/release/vestibule")
HOST = "localhost"
ORIGIN = f"http://{HOST}"
INTERVIEW = "docassemble.base:data/questions/examples/text-field.yml"
# As many as interviews are open: docassemble answers one request of each at a time.
SESSIONS = 40


def environment():
    """env.sh's settings, as the scripts see them."""
    text = subprocess.check_output(["bash", "-c", "set -a; . ./env.sh; env -0"], cwd=SETUP, text=True)
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


class Docassemble:
    """The real one, under its supervisord."""

    def __init__(self, env):
        self.env, self.state, self.run = env, Path(env["DA_STATE"]), Path(env["RUN"])
        self.executed = self.state / "executed"

    def up(self, *options):
        command = [SETUP / "up.sh", "--supervisor", "--executed", self.executed, "--url-root", ORIGIN, *options]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    def down(self):
        subprocess.run([SETUP / "down.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    async def supervisorctl(self, *words):
        command = ["supervisorctl", "-c", str(self.state / "supervisord.conf"), *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        said = (await process.communicate())[0].decode()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: {said}")

    def answers(self):
        """uWSGI and websockets are there, not asked by way of any front door."""
        return all(
            status_of(int(self.env[port]), path) == 200
            for port, path in [("DA_HTTP_PORT", "/health_check?ready=1"), ("DA_WS_PORT", "/socket.io/?EIO=4&transport=polling")]
        )


def status_of(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path, headers={"Host": HOST})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Session:
    """Somebody in the middle of an interview: the cookies, and the answer to the question that is on view."""

    def __init__(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.page = f"/interview?i={quote(INTERVIEW)}"
        connection.request("GET", self.page + "&new_session=1", headers={"Host": HOST})
        response = connection.getresponse()
        cookies = [value.split(";")[0] for name, value in response.getheaders() if name.lower() == "set-cookie"]
        text = response.read().decode()
        connection.close()
        form = re.search(r'<form[^>]*id="daform".*?</form>', text, re.S)
        if form is None:
            raise SystemExit(f"no question in {INTERVIEW}: {response.status} {text[:300]}")
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form.group(0)))
        shown = re.findall(r'<input[^>]*type="text"[^>]*>', form.group(0))
        names = [re.search('name="([^"]+)"', tag).group(1) for tag in shown]
        # The page's script says which fields are on view; without it nothing is stored.
        hidden["_visible"] = base64.b64encode(json.dumps(names).encode()).decode()
        self.answer = urlencode({**hidden, **dict.fromkeys(names, "apple")}).encode()
        self.checkin = urlencode({"action": "checkin", "csrf_token": hidden.get("csrf_token", ""), "ajax": "1"}).encode()
        self.cookies = f"Cookie: {'; '.join(cookies)}\r\n"


def traffic(sessions):
    """Requests by number: ten kinds, the sessions in turn."""

    def request(number):
        session = sessions[number // 10 % len(sessions)]
        form = session.cookies + "Content-Type: application/x-www-form-urlencoded\r\n"
        interview = f"{session.page}&n={number}"
        return [
            ("POST", interview, form, session.answer),
            ("GET", f"/packagestatic/docassemble.base/bluediamond.png?n={number}", "", b""),
            ("GET", interview, session.cookies, b""),
            ("GET", f"/static/app/app.css?n={number}", session.cookies, b""),
            ("GET", f"/user/sign-in?n={number}", "", b""),
            ("POST", f"/checkin?i={quote(INTERVIEW)}&n={number}", form, session.checkin),
            ("GET", f"/static/bootstrap/css/bootstrap.min.css?n={number}", "", b""),
            ("GET", f"/health_status?n={number}", "", b""),
            ("GET", f"/static/app/bundle.js?n={number}", session.cookies, b""),
            ("GET", f"/robots.txt?n={number}", "", b""),
        ][number % 10]

    return request


def vestibule(folder, port, docassemble):
    env, run = docassemble.env, docassemble.run
    supervisor = f"supervisor: {{ address: 'unix:{run}/supervisor.sock' }}"
    (folder / "vestibule.yml").write_text(
        f"listeners: [{{ address: '127.0.0.1:{port}' }}]\n"
        f"tls: {{ storage: {folder}/storage }}\nspool: {{ path: {folder}/spool }}\n"
        f"access_log: {{ path: {folder}/access.log }}\nadmin: unix:{folder}/admin.sock\n"
        "upstreams:\n"
        f"  app: {{ endpoints: ['unix:{run}/docassemble.sock'], {supervisor} }}\n"
        f"  websockets: {{ {supervisor} }}\n"
        f"routes: [{{ prefix: /, files: [{env['DA_STATE']}, {env['DA_VENV']}, /usr, /tmp] }}]\n"
    )
    return [VESTIBULE, "serve", "--docassemble", docassemble.state / "config.yml", "--config", folder / "vestibule.yml"]


def nginx(folder, port, docassemble):
    websockets = f"http://127.0.0.1:{docassemble.env['DA_WS_PORT']}"
    (folder / "nginx.conf").write_text(
        f"user www-data; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        f"server {{ listen 127.0.0.1:{port}; server_name {HOST}; client_max_body_size 16M;\n"
        f"location / {{ include /etc/nginx/uwsgi_params; uwsgi_pass unix://{docassemble.run}/docassemble.sock; }}\n"
        f"location /ws {{ include /etc/nginx/proxy_params; proxy_pass {websockets}; }}\n"
        "location /ws/socket.io { include /etc/nginx/proxy_params; proxy_http_version 1.1; proxy_buffering off;\n"
        "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;\n"
        f"proxy_pass {websockets}/socket.io; }}\n"
        "location /xaccel/ { internal; alias /; } } }\n"
    )
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", folder / "nginx.conf"]


def haproxy(folder, port, docassemble):
    env = docassemble.env
    (folder / "haproxy.cfg").write_text(
        "global\n  log stdout format raw local0\n"
        "defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 3s\n  timeout client 60s\n  timeout queue 30s\n"
        "  timeout server 60s\n  timeout tunnel 1h\n  retries 30\n  option redispatch 1\n"
        "  retry-on conn-failure empty-response response-timeout\n"
        f"frontend front\n  bind 127.0.0.1:{port}\n  use_backend websockets if {{ path_beg /ws/ }}\n  default_backend app\n"
        "backend app\n  http-request disable-l7-retry if METH_POST\n"
        f"  server app 127.0.0.1:{env['DA_HTTP_PORT']} maxconn 6\n"
        "backend websockets\n  http-request replace-path /ws/(.*) /\\1\n"
        f"  server websockets 127.0.0.1:{env['DA_WS_PORT']}\n"
    )
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", folder / "haproxy.cfg"]


PEERS = {"vestibule": (vestibule, []), "nginx": (nginx, []), "haproxy": (haproxy, ["--web-server", "none", "--no-xsendfile"])}


async def restart(docassemble, _):
    await docassemble.supervisorctl("restart", "uwsgi")


async def reload(docassemble, _):
    # It looks at whole seconds.
    wsgi = docassemble.state / "docassemble.wsgi"
    later = wsgi.stat().st_mtime + 10
    os.utime(wsgi, (later, later))


async def order(_, folder):
    reader, writer = await asyncio.open_unix_connection(folder / "admin.sock")
    writer.write(b"POST /restart/uwsgi HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise SystemExit(f"POST /restart/uwsgi: {answer.decode()}")


async def websockets(docassemble, _):
    await docassemble.supervisorctl("restart", "websockets")


# What is done, to whom, and whether a POST may be inside of what is ended.
CASES = {
    "restart": (restart, list(PEERS), True, "supervisorctl restart uwsgi"),
    "reload": (reload, list(PEERS), False, "touch docassemble.wsgi, on which uWSGI loads docassemble anew"),
    "order": (order, ["vestibule"], False, "Vestibule is told to restart uwsgi (POST /restart/uwsgi), which only it can be"),
    "websockets": (websockets, list(PEERS), False, "supervisorctl restart websockets"),
}


async def measure(peer, case, seconds, docassemble, folder, port):
    act, *_ = CASES[case]
    await until("docassemble to answer", docassemble.answers)
    sessions = [Session(int(docassemble.env["DA_HTTP_PORT"])) for _ in range(SESSIONS)]
    said = folder / f"live-help-{case}"
    python, base = docassemble.env["DA_VENV"] + "/bin/python", f"http://127.0.0.1:{port}/"
    with open(said, "wb") as out:
        live_help = subprocess.Popen([python, HERE / "live_help.py", base, ORIGIN], stdout=out, stderr=subprocess.STDOUT)
    try:
        await until("live help to be connected", lambda: live_help.poll() is not None or b"heard" in said.read_bytes())
        if live_help.poll() is not None:
            raise SystemExit(f"live help did not connect: {said.read_text()}")
        docassemble.executed.write_text("")
        told = await ask_for(seconds, port, traffic(sessions), lambda: act(docassemble, folder))
        await until("live help to be connected again", lambda: is_connected(said))
    finally:
        live_help.terminate()
        live_help.wait()
    executed = Counter(docassemble.executed.read_text().splitlines())
    told, (websocket, refused) = tell(told, executed), fate(said)
    faults = list(broken(case, told, websocket)) if peer == "vestibule" else []
    how = told.pop("how").split() + ([f"handshake×{refused}"] if refused else [])
    return {**told, "live help": websocket, "how": " ".join(how)}, faults


def events(said):
    lines = [line.split() for line in said.read_text().splitlines()]
    return [(float(line[0]), *line[1:]) for line in lines if len(line) > 1 and re.fullmatch(r"\d+\.\d+", line[0])]


def is_connected(said):
    """It has heard something since it was last closed."""
    return events(said)[-1][1] == "heard"


def fate(said):
    """What has become of the websocket, and how many attempts to open it again have failed."""
    closed, told, refused = None, [], 0
    for at, what, *code in events(said):
        refused += what == "refused"
        if what == "closed" and closed is None:
            closed = at
            told += code
        elif what == "heard" and closed is not None:
            told.append(f"{at - closed:.1f} s away")
            closed = None
    return ", ".join(told) or "stays", refused


def broken(case, told, websocket):
    """What Vestibule has promised, and not kept."""
    may_be_inside = CASES[case][2]
    if told["GET failed"]:
        yield f"{told['GET failed']} requests failed that could have been sent again"
    if told["POST twice"]:
        yield f"{told['POST twice']} POST were executed twice"
    if told["POST failed"] and not may_be_inside:
        yield f"{told['POST failed']} POST failed"
    # What was sent to a process that was ended may have been executed, which is what 502 says.
    if told["POST failed"] and told["how"] != f"502×{told['POST failed']}":
        yield f"requests failed otherwise than by 502: {told['how']}"
    if websocket != "stays" and not (case == "websockets" and websocket.startswith("1012, ")):
        yield f"the websocket of live help: {websocket}"


def run(peer, cases, seconds, env):
    """All cases of one front door, with docassemble started for it."""
    configure, options = PEERS[peer]
    docassemble, folder, results = Docassemble(env), Path(tempfile.mkdtemp(prefix="restarts-")), {}
    folder.chmod(0o755)
    front, faults = None, []
    try:
        docassemble.up(*options)
        port = free_port()
        with open(folder / f"{peer}.log", "wb") as log:
            front = subprocess.Popen(configure(folder, port, docassemble), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        asyncio.run(until(f"{peer} to answer", lambda: status_of(port, "/health_check") == 200))
        for case in cases:
            print(f"{peer}: {case} ...", file=sys.stderr, flush=True)
            results[case], broken_now = asyncio.run(measure(peer, case, seconds, docassemble, folder, port))
            faults += [f"{case}: {fault}" for fault in broken_now]
    except BaseException:
        print(f"logs are in {folder}", file=sys.stderr)
        raise
    finally:
        if front:
            front.terminate()
            front.wait()
        docassemble.down()
    shutil.rmtree(folder)
    return results, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=",".join(PEERS))
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--seconds", type=int, default=40)
    options = parser.parse_args()
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases, peers = options.case.split(","), options.peer.split(",")
    setup = subprocess.run([SETUP / "setup.sh"], stdin=subprocess.DEVNULL, check=False).returncode
    if setup:
        return setup
    env = environment()
    results, faults = {}, []
    for peer in peers:
        results[peer], broken_there = run(peer, [case for case in cases if peer in CASES[case][1]], options.seconds, env)
        faults += broken_there
    for case in cases:
        print(f"\n{case}: {CASES[case][3]}; {RATE * options.seconds} requests")
        known = [peer for peer in peers if case in results[peer]]
        for peer in known:
            show(peer, results[peer][case], headed=peer == known[0])
    for fault in faults:
        print(f"\nVestibule has not kept its word: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
