"""Generated requests, whole and damaged, sent in random pieces: what the backend reads with h11 has to be what the front end logged.

Only Vestibule's log says enough for this: method, target, bytes of the body and the endpoint of every request, by line of JSON.
"""

import asyncio
import json
import random
from collections import Counter

from readers import Unreadable, strict
from smuggling import Backend, until_silent

CONNECTIONS_AT_ONCE = 32
METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"BREW"]
NAMES = [b"Accept", b"Cookie", b"User-Agent", b"X-Thing", b"x-thing", b"Content-Type", b"Range", b"If-None-Match", b"Connection", b"TE", b"X_Thing"]
VALUES = [b"*/*", b"a=1; b=2", b"text/html", b"", b"x" * 300, b"\xc3\xa4", b"keep-alive", b"bytes=0-5", b'"tag"', b"trailers", b"close"]
DAMAGE = [b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b"0", b"5", b";", b",", b"chunked", b"\r\n ", b"\r\n\r\n", b"\xff", b"GET / HTTP/1.1\r\n"]


def one(chance, number):
    """A request that is as it should be."""
    method = chance.choice(METHODS)
    target = b"/d-%d" % number + chance.choice([b"", b"?q=1", b"/x/y", b"//z", b"%20", b"?a=b&c=%2F"])
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: localhost"]
    for _ in range(chance.randrange(5)):
        lines.append(chance.choice(NAMES) + b":" + chance.choice([b" ", b"", b"\t"]) + chance.choice(VALUES))
    body = chance.randbytes(chance.choice([0, 1, 5, 100, 5000, 70000])) if method in (b"POST", b"PUT", b"PATCH") else b""
    framing = chance.choice(["length", "chunks"]) if body else chance.choice(["none", "none", "length"])
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(body))
    if framing == "chunks":
        lines.append(b"Transfer-Encoding: chunked")
        pieces, left = [], body
        while left:
            size = chance.randrange(1, len(left) + 1)
            pieces.append(b"%x%s\r\n%s\r\n" % (size, chance.choice([b"", b"", b";x=y"]), left[:size]))
            left = left[size:]
        body = b"".join(pieces) + b"0\r\n" + chance.choice([b"", b"", b"X-Sum: 1\r\n"]) + b"\r\n"
    first, *others = lines
    chance.shuffle(others)
    return b"\r\n".join([first, *others]) + b"\r\n\r\n" + body


def damaged(chance, stream):
    """The same with something put in, taken out or said twice; most often in the head."""
    end = stream.find(b"\r\n\r\n") + 4
    at = chance.randrange(end) if chance.random() < 0.8 else chance.randrange(len(stream))
    match chance.randrange(4):
        case 0:
            return stream[:at] + chance.choice(DAMAGE) + stream[at:]
        case 1:
            return stream[:at] + stream[at + chance.randrange(1, 4) :]
        case 2:
            return stream[:at] + bytes([chance.randrange(256)]) + stream[at + 1 :]
        case _:
            lines = stream[: end - 2].split(b"\r\n")
            line = chance.randrange(1, len(lines))
            return b"\r\n".join(lines[:line] + [lines[line]] + lines[line:]) + stream[end - 2 :]


async def converse(port, chance, numbers):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        stream = b""
        for number in numbers:
            request = one(chance, number)
            stream += damaged(chance, request) if chance.random() < 0.4 else request
        while stream:
            size = chance.choice([1, 7, 100, 1000, 100000])
            writer.write(stream[:size])
            await writer.drain()
            stream = stream[size:]
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        await until_silent(reader, lambda _: False)
    except OSError:
        pass
    finally:
        writer.close()


def disagreements(backend, log):
    """What the backend read and the front end did not log as one request, and the other way round."""
    seen, faults = Counter(), []
    for stream in backend.streams:
        try:
            seen.update((r.method.decode(), r.target.decode("latin-1"), len(r.body)) for r in strict(bytes(stream)))
        except Unreadable as error:
            faults.append(f"h11 refuses what was forwarded: {error}")
    logged, surely = Counter(), Counter()
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if "endpoint" not in record:
            continue
        key = (record["method"], record["target"], record["bytes_received"])
        logged[key] += 1
        # A client that has gone takes its request with it, at whatever point.
        if record["status"] == 200:
            surely[key] += 1
    faults += [f"read by the backend and not logged: {key} {count} times" for key, count in (seen - logged).items()]
    faults += [f"logged and not read by the backend: {key} {count} times" for key, count in (surely - seen).items()]
    return sum(seen.values()), faults


async def run(front_of, count, seed):
    """Answers how many requests reached the backend, and every disagreement."""
    chance = random.Random(seed)
    backend = await Backend().start()
    front = await asyncio.to_thread(front_of, backend.port)
    turn = asyncio.Semaphore(CONNECTIONS_AT_ONCE)

    async def talk(numbers):
        async with turn:
            await converse(front.plain, random.Random(f"{seed} {numbers[0]}"), numbers)

    try:
        talks, number = [], 0
        while number < count:
            length = min(chance.randrange(1, 9), count - number)
            talks.append(talk(range(number, number + length)))
            number += length
        await asyncio.gather(*talks)
        stood = front.stands()
    finally:
        # Its log is whole when it has ended.
        await asyncio.to_thread(front.stop)
        backend.server.close()
    seen, faults = disagreements(backend, front.folder / "access.log")
    return seen, faults + ([] if stood else ["it crashed"])
