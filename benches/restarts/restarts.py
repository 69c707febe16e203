#!/usr/bin/env python3
"""What users notice when applications restart, die, hang and flap behind a front door: Vestibule's, nginx's and HAProxy's.

    python3 benches/restarts/restarts.py [--peer vestibule,nginx,haproxy] [--case restart,reload,kill,hang,flap] [--seconds 20]

Real uWSGI with six threads each, loaded in three seconds. Fifty requests a second come, four of five are GET, the others POST,
each on a connection of its own. Everything happens on loopback, on free ports; only processes that were started here are ended.
"""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
RATE = 50
LOADING = 3.0
DEADLINE = 5
PATIENCE = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(("127.0.0.1", port))
            probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return bool(probe.recv(1))
        except OSError:
            return False


async def until(what, holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"not within {PATIENCE} s: {what}")
        await asyncio.sleep(0.02)


class Application:
    """uWSGI, at one address through all its lives."""

    def __init__(self, folder, number):
        self.folder, self.number, self.port, self.process = folder, number, free_port(), None
        self.touched = folder / f"touched{number}"
        self.touched.touch()

    def start(self):
        environment = dict(os.environ, LOADING=str(LOADING), EXECUTED=str(self.folder / "executed"))
        environment.pop("PYTHONHOME", None)
        command = ["uwsgi", "--plugin", "python3", "--master", "--die-on-term", "--need-app", "--enable-threads"]
        command += ["--threads", "6", "--listen", "100", "--single-interpreter", "--wsgi-file", "application.py"]
        command += ["--http-socket", f"127.0.0.1:{self.port}", "--touch-reload", str(self.touched)]
        log = open(self.folder / f"uwsgi{self.number}.log", "ab")
        self.process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log, start_new_session=True)

    async def started(self):
        """It listens before it has loaded anything, and knows no signal until it has."""
        await until("uWSGI to answer", lambda: answers(self.port))

    def signal(self, which):
        """Master and workers alike."""
        os.killpg(self.process.pid, which)

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        await self.ended()

    async def ended(self):
        await until("uWSGI to end", lambda: self.process.poll() is not None)

    async def restart(self):
        """As a supervisor does it: TERM, wait, start."""
        await self.stop()
        self.start()


async def restart(applications):
    await applications[0].restart()


async def reload(applications):
    # It looks at whole seconds.
    later = time.time() + 10
    os.utime(applications[0].touched, (later, later))


async def kill(applications):
    applications[0].signal(signal.SIGKILL)
    await applications[0].ended()
    applications[0].start()


async def hang(applications):
    applications[0].signal(signal.SIGSTOP)
    await asyncio.sleep(12)
    applications[0].signal(signal.SIGCONT)


async def flap(applications):
    for _ in range(3):
        await kill(applications)
        await applications[0].started()
        await asyncio.sleep(0.5)


CASES = {
    "restart": (1, restart, "the only one is restarted"),
    "reload": (1, reload, "the only one is touched, and loads anew"),
    "kill": (3, kill, "one of three is killed, and started again"),
    "hang": (3, hang, "one of three accepts and never answers, for 12 s"),
    "flap": (3, flap, "one of three is killed again and again"),
}


def vestibule(folder, port, applications):
    endpoints = ", ".join(f"'127.0.0.1:{application.port}'" for application in applications)
    (folder / "vestibule.yml").write_text(
        f"listeners: [{{ address: '127.0.0.1:{port}' }}]\n"
        f"access_log: {{ path: {folder}/access.log }}\n"
        f"spool: {{ path: {folder}/spool }}\ntls: {{ storage: {folder}/storage }}\n"
        f"upstreams:\n  app:\n    endpoints: [{endpoints}]\n    concurrency: {6 * len(applications)}\n"
        f"    health: {{ path: /health, interval: 1s }}\n"
        f"routes: [{{ prefix: /, upstream: app, timeout: {DEADLINE}s }}]\n"
    )
    program = os.environ.get("VESTIBULE_BINARY") or str(HERE.parent.parent / "target/release/vestibule")
    return [program, "serve", "--config", str(folder / "vestibule.yml")]


def nginx(folder, port, applications):
    servers = "".join(
        f"server 127.0.0.1:{application.port} max_fails=1 fail_timeout=2s;" for application in applications
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        f"upstream app {{ zone app 64k; least_conn; {servers} }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; proxy_connect_timeout 3s;\n"
        f"proxy_read_timeout {DEADLINE}s; proxy_next_upstream error timeout; }} }} }}\n"
    )
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(folder / "nginx.conf")]


def haproxy(folder, port, applications):
    several = len(applications) > 1
    servers = "\n".join(
        f"  server app{number} 127.0.0.1:{application.port} maxconn 6" + (" check inter 1s" if several else "")
        for number, application in enumerate(applications)
    )
    (folder / "haproxy.cfg").write_text(
        "global\n  log stdout format raw local0\n"
        "defaults\n  mode http\n  log global\n  option httplog\n  timeout connect 3s\n  timeout client 60s\n  timeout queue 30s\n"
        f"  timeout server {DEADLINE}s\n  retries 30\n  option redispatch 1\n"
        "  retry-on conn-failure empty-response response-timeout\n"
        f"frontend front\n  bind 127.0.0.1:{port}\n  default_backend app\n"
        "backend app\n  balance leastconn\n  http-request disable-l7-retry if METH_POST\n"
        + ("  option httpchk GET /health\n" if several else "")
        + servers
        + "\n"
    )
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-f", str(folder / "haproxy.cfg")]


PEERS = {"vestibule": vestibule, "nginx": nginx, "haproxy": haproxy}


def page(number):
    """The request of this number: its method, what it asks for, further fields, and its body."""
    method = "POST" if number % 5 == 0 else "GET"
    return method, f"/page?n={number}", "", b"x" * 1024 if method == "POST" else b""


def is_whole(answer):
    """Whether all has come that its head promises."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:])
    if b"content-length" in fields:
        return len(body) == int(fields[b"content-length"])
    return b"transfer-encoding" not in fields or body.endswith(b"0\r\n\r\n")


async def ask(port, number, request):
    """One request: its method, its number, its status or what went wrong, and how long it took."""
    method, target, fields, body = request(number)
    begun = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}"
            if body:
                head += f"Content-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"\r\n" + body)
            answer = await reader.read()
            writer.close()
        status = int(answer.split(b" ", 2)[1])
        outcome = status if status != 200 or is_whole(answer) else "cut"
    except (OSError, IndexError, ValueError, TimeoutError) as error:
        outcome = type(error).__name__
    return method, number, outcome, time.monotonic() - begun


async def ask_for(seconds, port, request, act):
    """`RATE` requests a second for `seconds`, two seconds of them before `act`; answers what has come of each."""
    asked, began, acting = [], time.monotonic(), None
    for number in range(RATE * seconds):
        delay = began + number / RATE - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        if acting is None and time.monotonic() - began > 2:
            acting = asyncio.create_task(act())
        asked.append(asyncio.create_task(ask(port, number, request)))
    told = await asyncio.gather(*asked)
    await acting
    return told


async def measure(peer, case, seconds):
    count, act, _ = CASES[case]
    folder = Path(tempfile.mkdtemp(prefix="restarts-"))
    applications = [Application(folder, number) for number in range(count)]
    front = None
    try:
        for application in applications:
            application.start()
        for application in applications:
            await application.started()
        port = free_port()
        log = open(folder / f"{peer}.log", "wb")
        front = subprocess.Popen(PEERS[peer](folder, port, applications), stdout=log, stderr=log)
        await until(f"{peer} to answer", lambda: answers(port))
        told = await ask_for(seconds, port, page, lambda: act(applications))
    finally:
        if front:
            front.terminate()
            front.wait()
        for application in applications:
            if application.process and application.process.poll() is None:
                application.signal(signal.SIGCONT)
                application.signal(signal.SIGKILL)
                application.process.wait()
    executed = Counter((folder / "executed").read_text().splitlines())
    shutil.rmtree(folder)
    return tell(told, executed)


def tell(answers, executed):
    failed = [answer for answer in answers if answer[2] != 200]
    posts = [answer for answer in failed if answer[0] == "POST"]
    times = sorted(answer[3] for answer in answers)
    return {
        "GET failed": sum(1 for answer in failed if answer[0] == "GET"),
        "POST failed": len(posts),
        "of them begun with": sum(1 for answer in posts if executed[f"POST {answer[1]}"]),
        "POST twice": sum(1 for what, count in executed.items() if count > 1 and what.startswith("POST")),
        "longest": f"{times[-1]:.1f} s",
        "p99": f"{times[int(len(times) * 0.99)]:.1f} s",
        "p50": f"{times[len(times) // 2] * 1000:.0f} ms",
        "how": " ".join(f"{outcome}×{count}" for outcome, count in Counter(answer[2] for answer in failed).most_common()),
    }


def show(peer, told, headed):
    """One line of a table, the last column of which is as wide as it comes."""
    *names, last = told
    if headed:
        print(f"  {'':10}" + "".join(f"{name:>20}" for name in names) + f"  {last}")
    print(f"  {peer:10}" + "".join(f"{told[name]:>20}" for name in names) + f"  {told[last]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=",".join(PEERS))
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    for case in options.case.split(","):
        print(f"\n{case}: {CASES[case][2]}; {RATE * options.seconds} requests")
        for number, peer in enumerate(options.peer.split(",")):
            show(peer, asyncio.run(measure(peer, case, options.seconds)), headed=number == 0)


if __name__ == "__main__":
    sys.exit(main())
