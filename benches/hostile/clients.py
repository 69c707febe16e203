"""The clients of endurance.py: HTTP/1.1 and HTTP/2 that keep their connections, websockets, and those that vanish."""

import asyncio
import itertools
import os
import ssl

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from application import CLOSE, TEXT, frame, read_body, read_frame, read_head, reset

#: Source addresses, so that there are ports for all and no address has more connections than it may.
ADDRESSES = [f"127.0.1.{last}" for last in range(1, 41)]
#: Where there is no answer within this there is none: longer than a request is held while the application is away.
DEADLINE = 45

addresses = itertools.cycle(ADDRESSES)
#: Tasks that listen, which nobody else may keep.
listening = set()


def trusting(protocol):
    """TLS that takes any certificate: what is looked at here is not that."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


TLS_H1, TLS_H2 = trusting("http/1.1"), trusting("h2")


async def connect(port, tls=None):
    extra = {"ssl": tls, "server_hostname": "localhost"} if tls else {}
    async with asyncio.timeout(DEADLINE):
        return await asyncio.open_connection("127.0.0.1", port, local_addr=(next(addresses), 0), **extra)


class Http1:
    """One connection, one request at a time."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, site, tls):
        return cls(*await connect(site.tls if tls else site.plain, TLS_H1 if tls else None))

    def is_open(self):
        return not self.reader.at_eof() and not self.writer.is_closing()

    async def ask(self, method, target, body=b""):
        """Status and body of the answer.

        Raises `OSError` or `EOFError` where it breaks off.
        """
        length = b"Content-Length: %d\r\n" % len(body) if method == "POST" else b""
        self.writer.write(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n".encode() + length + b"\r\n" + body)
        line, fields = await read_head(self.reader)
        answer = await read_body(self.reader, fields)
        if fields.get("connection") == "close":
            self.writer.close()
        return int(line.split(" ")[1]), answer

    def end(self, gently):
        self.writer.close() if gently else reset(self.writer)


class Http2:
    """One connection, whose PINGs are answered while nothing is asked."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.connection.initiate_connection()
        self.waiting, self.leaving = {}, False
        self.send()
        self.listening = asyncio.create_task(self.listen())
        listening.add(self.listening)
        self.listening.add_done_callback(listening.discard)

    @classmethod
    async def open(cls, site, _tls=True):
        return cls(*await connect(site.tls, TLS_H2))

    def is_open(self):
        return not self.listening.done() and not self.leaving

    def send(self):
        self.writer.write(self.connection.data_to_send())

    async def listen(self):
        """Until the connection ends; then whoever waits is told."""
        try:
            while received := await self.reader.read(65536):
                for event in self.connection.receive_data(received):
                    self.take(event)
                self.send()
        except (OSError, h2.exceptions.ProtocolError):
            pass
        finally:
            self.leaving = True
            for _, _, done in self.waiting.values():
                if not done.done():
                    done.set_exception(EOFError("the connection ended"))

    def take(self, event):
        if isinstance(event, h2.events.ConnectionTerminated):
            self.leaving = True
        stream = self.waiting.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.DataReceived):
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if not stream:
            return
        fields, body, done = stream
        if isinstance(event, h2.events.ResponseReceived):
            fields.update(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            body += event.data
        elif isinstance(event, h2.events.StreamEnded) and not done.done():
            done.set_result(None)
        elif isinstance(event, h2.events.StreamReset) and not done.done():
            done.set_exception(EOFError(f"the stream was reset: {event.error_code}"))

    async def ask(self, method, target, body=b""):
        stream = self.connection.get_next_available_stream_id()
        self.waiting[stream] = {}, bytearray(), asyncio.get_running_loop().create_future()
        fields, answer, done = self.waiting[stream]
        try:
            head = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", target)]
            self.connection.send_headers(stream, head, end_stream=not body)
            while body:
                room = min(self.connection.local_flow_control_window(stream), self.connection.max_outbound_frame_size)
                if room <= 0:
                    await asyncio.sleep(0.01)
                    if done.done():
                        break
                    continue
                self.connection.send_data(stream, body[:room], end_stream=len(body) <= room)
                body = body[room:]
                self.send()
            self.send()
            await done
            return int(fields[":status"]), bytes(answer)
        except h2.exceptions.ProtocolError as error:
            raise EOFError(str(error)) from None
        finally:
            del self.waiting[stream]

    def end(self, gently):
        if gently and self.is_open():
            self.connection.close_connection()
            self.send()
        self.writer.close() if gently else reset(self.writer)


class Websocket:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, site, tls):
        reader, writer = await connect(site.tls if tls else site.plain, TLS_H1 if tls else None)
        writer.write(
            b"GET /ws/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        line, _ = await read_head(reader)
        if " 101 " not in line:
            raise EOFError(f"no websocket: {line}")
        return cls(reader, writer)

    async def say(self, text):
        """The answer to a message."""
        self.writer.write(frame(TEXT, text, os.urandom(4)))
        _, payload = await read_frame(self.reader)
        return payload

    def end(self, gently):
        if not gently:
            return reset(self.writer)
        self.writer.write(frame(CLOSE, b"\x03\xe8", os.urandom(4)))
        self.writer.close()


async def begin(port, data):
    """Says the beginning of something and vanishes."""
    _, writer = await connect(port)
    writer.write(data)
    await asyncio.sleep(0.2)
    reset(writer)


async def begun_head(site):
    await begin(site.plain, b"GET /hello HTTP/1.1\r\nHost: loc")


async def begun_body(site):
    await begin(site.plain, b"POST /digest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n" + bytes(300000))


async def begun_handshake(site):
    await begin(site.tls, b"\x16\x03\x01\x02\x00\x01")


async def begun_answer(site):
    reader, writer = await connect(site.plain)
    writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read(65536)
    reset(writer)


async def asked(site, protocol, tls):
    client = await protocol.open(site, tls)
    asking = asyncio.create_task(client.ask("GET", "/slow?n=0&ms=1500"))
    await asyncio.sleep(0.2)
    client.end(gently=False)
    try:
        await asking
    except (OSError, EOFError):
        pass


async def talking(site):
    websocket = await Websocket.open(site, False)
    await websocket.say(b"and gone")
    websocket.end(gently=False)


#: Clients that go away in the middle of something.
VANISHING = [
    begun_head,
    begun_body,
    begun_handshake,
    begun_answer,
    lambda site: asked(site, Http1, False),
    lambda site: asked(site, Http1, True),
    lambda site: asked(site, Http2, True),
    talking,
]
