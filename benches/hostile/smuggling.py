"""Sends every case of `cases.py` through a front end and looks at what reached the backend.

A case is well when nothing reached the backend, or what did can be read in one way only (`readers.py`), no request was seen that
the client has no answer to, and no field that the application believes of the front end alone holds the client's own word.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions

import cases
from readers import Unreadable, readings, spoofed, strict

#: How long a front end may be silent over a request that it takes to be unfinished.
SILENCE = 0.25
#: How long an answer of the backend's may be on its way to the client.
PATIENCE = 3
#: How long one case may take in all.
DEADLINE = 10
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Backend: seen\r\n\r\nhello"
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nX-Backend: seen\r\nConnection: close\r\n\r\n"
MARK = b"x-backend:"


class Backend:
    """Keeps what comes, by connection, and answers each request that h11 reads."""

    def __init__(self):
        self.streams = []
        self.port = None

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=512)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def seen(self):
        """Requests that have come since :meth:`take`, as h11 reads them."""
        count = 0
        for stream in self.streams:
            try:
                count += len(strict(bytes(stream)))
            except Unreadable:
                pass
        return count

    def take(self):
        """What has come since this was called last; of connections that go on, what is not read yet stays."""
        taken = [bytes(stream) for stream in self.streams if stream]
        for stream in self.streams:
            stream.clear()
        return taken

    async def serve(self, reader, writer):
        stream, answered, said = bytearray(), 0, bytearray()
        self.streams.append(stream)
        try:
            while data := await reader.read(65536):
                stream += data
                said += data
                try:
                    seen = len(strict(bytes(said)))
                except Unreadable:
                    writer.write(REFUSAL)
                    await writer.drain()
                    break
                if seen > answered:
                    writer.write(ANSWER * (seen - answered))
                    answered = seen
                    # Whole requests only: what follows is read by itself.
                    if not unfinished(bytes(said)):
                        said.clear()
                        answered = 0
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def unfinished(stream):
    """Whether `stream` ends within a request: one more byte of it changes nothing that is read."""
    try:
        return len(strict(stream + b"GET /probe HTTP/1.1\r\nHost: x\r\n\r\n")) == len(strict(stream))
    except Unreadable:
        return True


@dataclass
class Verdict:
    case: str
    reached: bool = False
    faults: list = field(default_factory=list)

    @property
    def outcome(self):
        return "; ".join(self.faults) if self.faults else ("one reading" if self.reached else "refused")


async def until_silent(reader, finished):
    """What comes until `finished` says so, the connection ends, or nothing comes any more."""
    got = b""
    while not finished(got):
        try:
            data = await asyncio.wait_for(reader.read(65536), SILENCE)
        except TimeoutError:
            return got, True
        except OSError:
            return got, False
        if not data:
            return got, False
        got += data
    return got, True


async def send_http1(port, stream, number, backend):
    """Answers what the client got, for the case and for a request behind it; all that the backend has answered has time to come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(stream)
        await writer.drain()
        got, open_ = await until_silent(reader, lambda _: False)
        if open_:
            writer.write(b"GET /after-%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
            await writer.drain()
            more, open_ = await until_silent(reader, lambda got: b"\r\n\r\nhello" in got)
            got += more
        patience = time.monotonic() + PATIENCE
        while open_ and backend.seen() > got.lower().count(MARK) and time.monotonic() < patience:
            more, open_ = await until_silent(reader, lambda _: False)
            got += more
        return got
    except OSError:
        return b""
    finally:
        writer.close()


def unchecked():
    return h2.config.H2Configuration(
        client_side=True,
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=False,
    )


async def send_http2(port, case, number):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    connection = h2.connection.H2Connection(unchecked())
    connection.initiate_connection()
    named = [(numbered(name, number), numbered(value, number)) for name, value in case.fields]
    trailers = [(numbered(name, number), numbered(value, number)) for name, value in case.trailers]
    data = numbered(case.data, number)
    try:
        connection.send_headers(1, named, end_stream=not data and not trailers)
        if data:
            connection.send_data(1, data, end_stream=not trailers)
        if trailers:
            connection.send_headers(1, trailers, end_stream=True)
        writer.write(connection.data_to_send())
        await writer.drain()
        answers = 0
        while True:
            try:
                received = await asyncio.wait_for(reader.read(65536), SILENCE * 2)
            except TimeoutError:
                return answers
            if not received:
                return answers
            for event in connection.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    answers += any(name.lower() + b":" == MARK for name, _ in event.headers)
                if isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    return answers
    except (OSError, h2.exceptions.ProtocolError):
        return 0
    finally:
        writer.close()


def numbered(text, number):
    return text.replace(b"@", b"%d" % number) if b"@" in text and b"evil@" not in text else text.replace(b"-@", b"-%d" % number)


def judge(case, streams, answers):
    verdict = Verdict(case.name, reached=bool(streams))
    seen = 0
    for stream in streams:
        found = readings(stream)
        reference = found["h11"]
        if reference is None:
            verdict.faults.append("TWO READINGS: h11 refuses what was forwarded")
        else:
            seen += len(reference)
            others = [name for name, reading in found.items() if reading is not None and reading != reference]
            if others:
                verdict.faults.append(f"TWO READINGS: {', '.join(others)}")
        names = spoofed(stream)
        if names:
            verdict.faults.append(f"SPOOFED: {', '.join(sorted(names))}")
    if seen > answers and any(b"/smuggled-" in stream for stream in streams):
        verdict.faults.append(f"SMUGGLED: {seen} requests reached the backend, {answers} answers the client")
    return verdict


async def run_case(front, backend, case, number):
    backend.take()
    try:
        async with asyncio.timeout(DEADLINE):
            if isinstance(case, cases.Http1):
                got = await send_http1(front.plain, numbered(case.stream, number), number, backend)
                answers = got.lower().count(MARK)
            else:
                answers = await send_http2(front.tls, case, number)
    except (TimeoutError, OSError, ssl.SSLError):
        answers = 0
    await asyncio.sleep(0.01)
    streams = [stream for stream in backend.take()]
    return judge(case, streams, answers)


async def run(front_of, only=""):
    """Every verdict on a front end, which `front_of` starts before the backend's port."""
    backend = await Backend().start()
    front = await asyncio.to_thread(front_of, backend.port)
    began, verdicts = time.monotonic(), []
    try:
        # One request first: whoever has just begun may keep it waiting.
        await run_case(front, backend, cases.Http1("warm", b"GET /case-@ HTTP/1.1\r\nHost: localhost\r\n\r\n"), 0)
        for number, case in enumerate(cases.all_cases(), 1):
            if only in case.name:
                verdicts.append(await run_case(front, backend, case, number))
                if not front.stands():
                    verdicts[-1].faults.append("CRASHED")
                    break
    finally:
        await asyncio.to_thread(front.stop)
        backend.server.close()
    return verdicts, time.monotonic() - began
