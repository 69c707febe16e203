#!/usr/bin/env python3
"""Half an hour of everything at once: what a front end keeps of it, and whether anything was lost.

    python3 benches/hostile/endurance.py [--seconds 1800] [--idle 10000] [--websockets 1000] [--out FILE]

Behind Vestibule are two processes of application.py. Before it are idle connections (HTTP/1.1 plain and by TLS, HTTP/2), each of which is
used now and then, websockets that say something every twenty seconds, requests at a bounded rate on kept and on new
connections, and clients that vanish in the middle of something. Meanwhile the application is killed and begun again, answers are broken
off by it, and configurations come and go, some of them faulty. Exit status 1 unless

- every request was answered, and rightly, but those that were inside an application when it was killed;
- memory (PSS and RSS of the keeper and the worker) had in the last third of the time no more than a tenth, or 2 MiB, above that of the second
  third, by the medians;
- all descriptors are closed once all clients have gone, but the pipes that each thread keeps;
- keeper and worker are those of the beginning, and nothing panicked.

Only processes that were started here are ended.
"""

import argparse
import asyncio
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from hostile import enter_environment

#: Requests a second, clients that vanish and idle connections that are replaced.
REQUESTS, VANISHED, REPLACED = 40, 2, 2
#: Seconds between two reloads, two deaths of the application, two looks at memory.
RELOADS, KILLS, LOOKS = 20, 30, 5
#: Of the idle connections, those that are HTTP/1.1 by TLS, and HTTP/2.
BY_TLS, HTTP2 = 0.2, 0.06
#: A websocket says something once in so many seconds, and hears it within `PATIENCE`.
SPEAKS, PATIENCE = 20, 10
#: Connections that are opened at once in the beginning.
AT_ONCE = 50
#: How long descriptors have to be closed when all clients have gone: idle connections to endpoints are kept for a minute.
CLOSED_WITHIN = 120
#: Threads, and the ends of pipes that each keeps for the next long body (src/splice.rs).
THREADS, KEPT_PIPES = 2, 8
#: How far from the moment of a kill a client may notice it.
NEAR = 0.1
#: How long after the end of the application what was inside is answered.
FELT = 5
MIB = 1024


class Ledger:
    """What was asked, and what became of it."""

    def __init__(self):
        self.asked, self.answered, self.killed, self.events, self.lost = Counter(), Counter(), Counter(), Counter(), []
        self.kills = []
        self.began = time.monotonic()

    def lose(self, what):
        self.lost.append(f"{time.monotonic() - self.began:.1f} s: {what}")
        print(f"lost: {self.lost[-1]}", flush=True)

    def was_killed(self, began):
        """Whether the application was killed while a request that began at `began` may have been inside."""
        now = time.monotonic()
        return any(began <= kill + NEAR and kill - NEAR <= now <= kill + FELT for kill in self.kills[-3:])


class Site:
    """Vestibule, the two processes behind it, and the configuration that changes."""

    def __init__(self, folder):
        from fronts import Front

        self.behind = {"http": quiet_port(), "echo": quiet_port()}
        self.processes = {kind: self.begin(kind) for kind in self.behind}
        self.number = 0
        self.front = Front("vestibule", folder, self.behind["http"], self.command)
        self.plain, self.tls = self.front.plain, self.front.tls

    def begin(self, kind):
        return subprocess.Popen([sys.executable, Path(__file__).with_name("application.py"), kind, str(self.behind[kind])])

    def command(self, front):
        from fronts import vestibule

        command = vestibule(front)
        self.write()
        return command

    def write(self, fault=""):
        """The next configuration: a route that comes and goes, and every third time other terms for the application."""
        front, number = self.front, self.number
        text = (
            f"listeners:\n  - address: '127.0.0.1:{front.plain}'\n  - {{ address: '127.0.0.1:{front.tls}', tls: true }}\n"
            f"tls:\n  certificates: [{{ files: {{ certificate: {front.certificate}, key: {front.key} }} }}]\n"
            f"  storage: {front.folder}/storage\nupstreams:\n"
            f"  app: {{ endpoints: ['127.0.0.1:{self.behind['http']}'], concurrency: {64 + number // 3 % 2} }}\n"
            f"  echo: {{ endpoints: ['127.0.0.1:{self.behind['echo']}'] }}\n"
            "routes:\n  - { prefix: /, upstream: app }\n  - { prefix: /ws/, upstream: echo }\n"
            f"  - {{ prefix: /extra-{number}, upstream: app }}\n{fault}"
            f"access_log: {{ path: {front.folder}/access.log, format: json }}\nspool: {{ path: {front.folder}/spool }}\n"
            f"admin: unix:{front.folder}/admin.sock\n"
            # As on the internet: nobody is exempt.
            f"workers: {THREADS}\nlimits: {{ connections: 14000, connections_per_address: 500, exempt: [], keep_alive: 2h }}\n"
        )
        file = front.folder / "vestibule.yml"
        (front.folder / "next.yml").write_text(text)
        (front.folder / "next.yml").replace(file)

    async def metrics(self):
        """The values of all metrics without labels."""
        reader, writer = await asyncio.open_unix_connection(self.front.folder / "admin.sock")
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if is_number(value)}

    async def reload(self, ledger):
        """A new configuration, or every fourth time a faulty one, has to be told by the metrics within ten seconds."""
        self.number += 1
        faulty = self.number % 4 == 0
        before = (await self.metrics())["vestibule_generation"]
        self.write(fault="nonsense: true\n" if faulty else "")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            now = await self.metrics()
            refused = now["vestibule_last_reload_success"] == 0
            if (faulty and refused) or (not faulty and now["vestibule_generation"] > before):
                ledger.events["faulty configurations refused" if faulty else "reloads"] += 1
                return
            await asyncio.sleep(0.2)
        ledger.lose(f"configuration {self.number} was not {'refused' if faulty else 'put in force'} within 10 s")

    async def kill(self, ledger):
        """The application is killed, away for up to three seconds, and begun again."""
        # Before and after: what a client notices lies between.
        ledger.kills.append(time.monotonic())
        self.processes["http"].kill()
        await asyncio.to_thread(self.processes["http"].wait)
        await asyncio.sleep(random.uniform(0, 3))
        self.processes["http"] = self.begin("http")
        await listens(self.behind["http"])
        ledger.events["deaths of the application"] += 1

    def look(self):
        """PSS and RSS in KiB, descriptors but pipes, and pipes, over the keeper and all workers."""
        pids = self.front.processes()
        open_ = [target for pid in pids for target in descriptors(pid)]
        pipes = sum(target.startswith("pipe:") for target in open_)
        return self.front.memory(), sum(map(resident, pids)), len(open_) - pipes, pipes

    def stop(self):
        if self.front.process:
            self.front.stop()
        for process in self.processes.values():
            process.kill()
            process.wait()


def is_number(text):
    try:
        float(text)
        return True
    except ValueError:
        return False


def quiet_port():
    """A port that no outgoing connection is given: while the application is away nobody may take it, least of all a connection to itself."""
    import socket

    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


async def listens(port):
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.05)


def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def descriptors(pid):
    """What the descriptors of a process are, without those that are closed meanwhile."""
    found = []
    for each in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(each))
        except FileNotFoundError:
            pass
    return found


class Load:
    """All clients."""

    def __init__(self, site, ledger, idle, websockets):
        self.site, self.ledger, self.wanted, self.talkers = site, ledger, idle, websockets
        self.idle, self.websockets, self.running, self.number = [], [], set(), 0

    def new_idle(self):
        """The kind of the next idle connection, and whether it is by TLS."""
        from clients import Http1, Http2

        drawn = random.random()
        return (Http2, True) if drawn < HTTP2 else (Http1, drawn < HTTP2 + BY_TLS)

    async def open_idle(self, turn=None):
        """One more idle connection, which has had a request."""
        protocol, tls = self.new_idle()
        async with turn or asyncio.Semaphore():
            try:
                client = await protocol.open(self.site, tls)
            except (OSError, EOFError, TimeoutError) as error:
                return self.ledger.lose(f"an idle connection was not opened: {error!r}")
            await self.ask(client, "hello")
            self.idle.append(client)

    async def open_websocket(self, turn):
        from clients import Websocket

        async with turn:
            try:
                websocket = await Websocket.open(self.site, random.random() < BY_TLS)
            except (OSError, EOFError, TimeoutError) as error:
                return self.ledger.lose(f"a websocket was not opened: {error!r}")
        self.websockets.append((websocket, self.spawn(self.talk(websocket))))

    async def begin(self):
        turn = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self.open_idle(turn) for _ in range(self.wanted)))
        await asyncio.gather(*(self.open_websocket(turn) for _ in range(self.talkers)))

    def spawn(self, work):
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.has_ended)
        return task

    def has_ended(self, task):
        self.running.discard(task)
        if not task.cancelled() and task.exception():
            self.ledger.lose(f"a client failed: {task.exception()!r}")

    async def talk(self, websocket):
        """Until the end, which cancels it."""
        spoken = 0
        while True:
            await asyncio.sleep(random.uniform(0, 2 * SPEAKS))
            spoken += 1
            text = b"message %d" % spoken
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = await websocket.say(text)
            except (OSError, EOFError, TimeoutError) as error:
                return self.ledger.lose(f"a websocket ended after {spoken} messages: {error!r}")
            if answer != text:
                return self.ledger.lose(f"a websocket said {answer!r} to {text!r}")
            self.ledger.events["websocket messages"] += 1

    async def ask(self, client, kind):
        """One request, and whether its answer is right."""
        self.number += 1
        number, body, method = self.number, b"", "GET"
        target, right = f"/{kind}?n={number}", b"hello %d" % number
        if kind == "slow":
            target += f"&ms={random.randrange(100, 2000)}"
        if kind == "extra":
            target = f"/extra-{self.site.number}/hello?n={number}"
        if kind == "digest":
            method, body = "POST", random.randbytes(random.choice([1, 1000, 100_000, 600_000]))
            right = b"%d %s" % (len(body), hashlib.sha256(body).hexdigest().encode())
        if kind == "large":
            right = LARGE
        began, client.busy, late = time.monotonic(), True, False
        self.ledger.asked[kind] += 1
        try:
            async with asyncio.timeout(DEADLINE):
                status, answer = await client.ask(method, target, body)
            failure = None if status == 200 and answer == right else f"status {status}, {len(answer)} bytes"
            meant = kind in ("reset", "cut") and status == 502
        except TimeoutError:
            failure, meant, late = f"no answer within {DEADLINE} s", False, True
            client.end(gently=False)
        except (OSError, EOFError) as error:
            failure, meant = repr(error), kind == "cut"
            client.end(gently=False)
        finally:
            client.busy, client.last = False, kind
        if meant or (failure is None and kind not in ("reset", "cut")):
            self.ledger.answered[kind] += 1
        elif not late and self.ledger.was_killed(began):
            self.ledger.killed[kind] += 1
        else:
            self.ledger.lose(f"{method} {target} over {type(client).__name__}, asked {time.monotonic() - began:.2f} s before: {failure}")

    async def one_request(self):
        """On a new connection, or on one that was idle."""
        kind = random.choices(list(KINDS), KINDS.values())[0]
        if random.random() < 0.3:
            protocol, tls = self.new_idle()
            try:
                client = await protocol.open(self.site, tls)
            except (OSError, EOFError, TimeoutError) as error:
                return self.ledger.lose(f"a connection was not opened: {error!r}")
            await self.ask(client, kind)
            return client.end(gently=random.random() < 0.8)
        for _ in range(20):
            client = random.choice(self.idle)
            if not client.busy:
                break
        else:
            return
        if not client.is_open():
            self.idle.remove(client)
            self.ledger.events[f"idle connections found closed, {type(client).__name__} after {client.last}"] += 1
            return await self.open_idle()
        await self.ask(client, kind)
        if not client.is_open() and client in self.idle:
            self.idle.remove(client)
            await self.open_idle()

    async def vanish(self):
        from clients import VANISHING

        try:
            async with asyncio.timeout(DEADLINE):
                await random.choice(VANISHING)(self.site)
            self.ledger.events["clients that vanished"] += 1
        except (OSError, EOFError, TimeoutError):
            self.ledger.events["clients that were sent away before they vanished"] += 1

    async def replace_idle(self):
        client = random.choice(self.idle)
        if not client.busy:
            self.idle.remove(client)
            client.end(gently=random.random() < 0.5)
            await self.open_idle()
            self.ledger.events["idle connections replaced"] += 1

    async def at_rate(self, work, rate, until):
        began, done = time.monotonic(), 0
        while (now := time.monotonic()) < until:
            self.spawn(work())
            done += 1
            await asyncio.sleep(max(0, began + done / rate - now))

    async def end(self):
        """All clients go, half of them with a farewell."""
        for _, talk in self.websockets:
            talk.cancel()
        await asyncio.gather(*list(self.running), return_exceptions=True)
        for client in [*self.idle, *(websocket for websocket, _ in self.websockets)]:
            client.end(gently=random.random() < 0.5)


#: What is asked, and how often in comparison.
KINDS = {"hello": 50, "slow": 12, "digest": 16, "large": 4, "extra": 10, "reset": 5, "cut": 3}


async def every(seconds, act, until):
    while time.monotonic() + seconds < until:
        await asyncio.sleep(seconds)
        await act()


async def endure(site, options):
    """The ledger, what was looked at (seconds, PSS, RSS, descriptors), descriptors before and after, and what is at fault."""
    ledger = Ledger()
    await listens(site.behind["http"])
    await listens(site.behind["echo"])
    await asyncio.to_thread(site.front.start)
    load = Load(site, ledger, options.idle, options.websockets)
    await asyncio.sleep(1)
    pids, (_, _, before, pipes) = site.front.processes(), site.look()
    opening = time.monotonic()
    await load.begin()
    print(f"{len(load.idle)} idle connections and {len(load.websockets)} websockets after {time.monotonic() - opening:.0f} s", flush=True)

    began = time.monotonic()
    until, looks = began + options.seconds, []

    async def look():
        looks.append((time.monotonic() - began, *await asyncio.to_thread(site.look)))
        if len(looks) % 12 == 0:
            seconds, pss, rss, open_, _ = looks[-1]
            figures = f"PSS {pss / MIB:.1f} MiB, RSS {rss / MIB:.1f} MiB, {open_} descriptors"
            print(f"{seconds:5.0f} s: {figures}, {ledger.asked.total()} requests, {len(ledger.lost)} lost", flush=True)

    await asyncio.gather(
        load.at_rate(load.one_request, REQUESTS, until),
        load.at_rate(load.vanish, VANISHED, until),
        load.at_rate(load.replace_idle, REPLACED, until),
        every(RELOADS, lambda: site.reload(ledger), until),
        every(KILLS, lambda: site.kill(ledger), until),
        every(LOOKS, look, until),
    )
    open_ = len([client for client in load.idle if client.is_open()])
    if open_ < options.idle * 0.99:
        ledger.lose(f"only {open_} idle connections are left")
    await load.end()
    end = time.monotonic() + CLOSED_WITHIN
    kept = pipes + THREADS * KEPT_PIPES
    while ((after := site.look())[2] > before or after[3] > kept) and time.monotonic() < end:
        await asyncio.sleep(1)
    ended = time.monotonic() - (end - CLOSED_WITHIN)

    faults = [f"lost: {what}" for what in ledger.lost]
    if site.front.processes() != pids or site.front.process.poll() is not None:
        faults.append(f"a process has ended: {pids} were there, {site.front.processes()} are")
    log = (site.front.folder / "output.log").read_text(errors="replace")
    faults += [f"the log says: {line}" for line in log.splitlines() if "panicked" in line]
    if after[2] > before or after[3] > kept:
        faults.append(f"{after[2]} descriptors and {after[3]} pipes are open {CLOSED_WITHIN} s after all clients have gone, {before} and {pipes} were before")
    for column, name in [(1, "PSS"), (2, "RSS")]:
        second, last = thirds(looks, options.seconds, column)
        if last > max(second * 1.1, second + 2 * MIB):
            faults.append(f"{name} grew from {second / MIB:.1f} to {last / MIB:.1f} MiB between the second and the last third")
    return ledger, looks, (before, after, ended), faults


def thirds(looks, seconds, column):
    """Medians of the second and the last third."""
    part = lambda least, most: median([look[column] for look in looks if least <= look[0] * 3 / seconds < most])  # noqa: E731
    return part(1, 2), part(2, 4)


def table(options, ledger, looks, ends, faults):
    before, (pss, rss, after, pipes), ended = ends
    mib = lambda pair: " → ".join(f"{value / MIB:.1f}" for value in pair) + " MiB"  # noqa: E731
    kinds = [f"{ledger.asked[kind]} {kind}" for kind in KINDS]
    rows = [
        ("time", f"{options.seconds} s"),
        ("idle connections", f"{options.idle}: {1 - BY_TLS - HTTP2:.0%} HTTP/1.1, {BY_TLS:.0%} by TLS, {HTTP2:.0%} HTTP/2"),
        ("websockets", f"{options.websockets}, {ledger.events.pop('websocket messages', 0)} messages there and back"),
        ("requests", f"{ledger.asked.total()}: {', '.join(kinds)}"),
        ("answered as they should be", str(ledger.answered.total())),
        ("inside an application that was killed", str(ledger.killed.total())),
        ("lost", str(len(ledger.lost))),
        *((name, str(count)) for name, count in sorted(ledger.events.items())),
        ("PSS, median of the second and last third", mib(thirds(looks, options.seconds, 1))),
        ("RSS, likewise", mib(thirds(looks, options.seconds, 2))),
        ("PSS, RSS at most", f"{max(look[1] for look in looks) / MIB:.1f}, {max(look[2] for look in looks) / MIB:.1f} MiB"),
        ("PSS, RSS when all had gone", f"{pss / MIB:.1f}, {rss / MIB:.1f} MiB"),
        ("descriptors before, at most, after", f"{before}, {max(look[3] for look in looks)}, {after} and {pipes} of pipes ({ended:.0f} s after all had gone)"),
        ("verdict", "FAILED" if faults else "passed"),
    ]
    head = ["# Endured", "", "What `make endurance` found: benches/hostile/endurance.py says what is done and what is held.", "", "| | |", "|---|---|"]
    return [*head, *(f"| {name} | {value} |" for name, value in rows), *([""] if faults else []), *(f"- {fault}" for fault in faults[:50])]


def allow_descriptors(needed):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        sys.exit(f"{needed} open files are needed, and the hard limit is {hard}: raise it (ulimit -Hn), or say --idle with fewer")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1800)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--websockets", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--keep", action="store_true", help="the folder with the logs stays")
    options = parser.parse_args()
    enter_environment()
    global DEADLINE, LARGE
    from application import LARGE
    from clients import DEADLINE

    # Two for a websocket in the worker; room for requests.
    allow_descriptors(options.idle + 2 * options.websockets + 2000)
    folder = Path(tempfile.mkdtemp(prefix="endurance-"))
    folder.chmod(0o755)
    site = Site(folder)
    try:
        found = asyncio.run(endure(site, options))
    finally:
        site.stop()
        if options.keep:
            print(f"logs are in {folder}")
        else:
            shutil.rmtree(folder)
    lines = table(options, *found)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return int(bool(found[-1]))


if __name__ == "__main__":
    sys.exit(main())
