"""What is behind the front end in endurance.py: `application.py http PORT` or `application.py echo PORT`, until it is ended.

`http` answers `/hello`, `/slow`, `/digest` and `/large`, and breaks off on purpose with `/reset` and `/cut`; `echo` sends every message
of a websocket back.
"""

import asyncio
import base64
import hashlib
import os
import socket
import struct
import sys
from urllib.parse import parse_qs, urlsplit

LARGE = bytes(range(256)) * 8192
#: Of a frame of a websocket that is one whole text, and of one that ends it.
TEXT, CLOSE = 0x81, 0x88


def reset(writer):
    """Ends the connection by RST."""
    # None where it has ended already.
    if connected := writer.transport.get_extra_info("socket"):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_head(reader):
    """The request line or status line, and the fields by lower-case name."""
    line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    return line, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def read_body(reader, fields):
    if "chunked" not in fields.get("transfer-encoding", ""):
        return await reader.readexactly(int(fields.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def serve_http(reader, writer):
    try:
        while True:
            line, fields = await read_head(reader)
            body = await read_body(reader, fields)
            target = urlsplit(line.split(" ")[1])
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            # A route that comes and goes has the same below its prefix.
            page = target.path.rsplit("/", 1)[-1]
            answer = b"hello " + query.get("n", "").encode()
            if page == "reset":
                return reset(writer)
            if page == "cut":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50000))
                await writer.drain()
                return reset(writer)
            if page == "slow":
                await asyncio.sleep(int(query["ms"]) / 1000)
            if page == "digest":
                answer = b"%d %s" % (len(body), hashlib.sha256(body).hexdigest().encode())
            if page == "large":
                answer = LARGE
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def read_frame(reader):
    """The first byte and the payload of a frame, which has less than 126 bytes, as all of ours."""
    first, second = await reader.readexactly(2)
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    payload = await reader.readexactly(second & 0x7F)
    return first, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def frame(first, payload, mask=b""):
    hidden = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return bytes([first, len(payload) | (0x80 if mask else 0)]) + mask + hidden


async def serve_echo(reader, writer):
    try:
        _, fields = await read_head(reader)
        # RFC 6455, section 4.2.2.
        key = hashlib.sha1(fields["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + base64.b64encode(key) + b"\r\n\r\n")
        while True:
            first, payload = await read_frame(reader)
            writer.write(frame(first, payload))
            await writer.drain()
            if first == CLOSE:
                break
    except (OSError, asyncio.IncompleteReadError, KeyError):
        pass
    finally:
        writer.close()


async def main(kind, port):
    serve = {"http": serve_http, "echo": serve_echo}[kind]
    server = await asyncio.start_server(serve, "127.0.0.1", int(port), backlog=4096)
    parent = os.getppid()
    # Whoever began this may have been killed.
    while os.getppid() == parent:
        await asyncio.sleep(1)
    server.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
