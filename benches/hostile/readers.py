"""Ways in which servers read a stream of HTTP/1.1 requests.

`strict` is h11's, which is nobody's fork and refuses what it does not understand. The others stand for what servers have been
caught at: each is a reading that real software has had. A stream that all of them read alike can be read in one way only.
"""

import re
from dataclasses import dataclass

import h11


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    body: bytes
    #: Pairs of name in lower case and value, as read.
    fields: tuple


class Unreadable(Exception):
    pass


def strict(stream):
    """All requests of `stream`; an unfinished one at its end is left out."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 22)
    connection.receive_data(stream)
    found = []
    head, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Unreadable(str(error)) from None
        if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
            return found
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            fields = tuple((bytes(name), bytes(value)) for name, value in head.headers)
            found.append(Request(bytes(head.method), bytes(head.target), bytes(body), fields))
            # CONNECT is declined: after a 200 it would be no HTTP any more.
            status = 405 if head.method == b"CONNECT" else 200
            answer = h11.Response(status_code=status, headers=[("content-length", "0")])
            connection.send(answer)
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
                return found
            connection.start_next_cycle()


@dataclass(frozen=True)
class Habits:
    """What a lenient server does."""

    line: bytes = rb"\r\n"
    #: `Content-Length` counts, whatever `Transfer-Encoding` says.
    length_first: bool = False
    #: What passes for the name of a field.
    name: object = staticmethod(lambda raw: raw.lower())
    #: What passes for a coding that is chunked.
    chunked: object = staticmethod(lambda value: value.strip().lower() == b"chunked")
    #: Of several lengths the last counts, not the first.
    last_length: bool = False


def lenient(habits, stream):
    found, rest = [], stream
    while rest.lstrip(b"\r\n"):
        rest = rest.lstrip(b"\r\n")
        end = re.search(habits.line + habits.line, rest)
        if not end:
            return found
        lines = re.split(habits.line, rest[: end.start()])
        rest = rest[end.end() :]
        words = lines[0].split()
        if len(words) < 2:
            raise Unreadable("no request line")
        fields = []
        for line in lines[1:]:
            if line[:1] in (b" ", b"\t") and fields:
                fields[-1] = (fields[-1][0], fields[-1][1] + b" " + line.strip())
                continue
            name, _, value = line.partition(b":")
            fields.append((habits.name(name), value.strip(b" \t")))
        lengths = [value for name, value in fields if name == b"content-length"]
        codings = [value for name, value in fields if name == b"transfer-encoding"]
        chunked = any(habits.chunked(value) for value in codings)
        if chunked and not (habits.length_first and lengths):
            body, rest = unchunk(habits, rest)
            if body is None:
                return found
        else:
            digits = [re.match(rb"\s*\+?(\d+)", value) for value in lengths]
            digits = [int(match.group(1)) for match in digits if match]
            length = (digits[-1] if habits.last_length else digits[0]) if digits else 0
            if len(rest) < length:
                return found
            body, rest = rest[:length], rest[length:]
        found.append(Request(words[0], words[1], body, tuple(fields)))
    return found


def unchunk(habits, rest):
    body = b""
    while True:
        end = re.search(habits.line, rest)
        if not end:
            return None, rest
        size = re.match(rb"\s*([0-9a-fA-F]+)", rest[: end.start()])
        if not size:
            raise Unreadable("no chunk size")
        size, rest = int(size.group(1), 16), rest[end.end() :]
        if size == 0:
            # Trailers, to an empty line.
            while True:
                end = re.search(habits.line, rest)
                if not end:
                    return None, rest
                line, rest = rest[: end.start()], rest[end.end() :]
                if not line:
                    return body, rest
        if len(rest) < size:
            return None, rest
        body, rest = body + rest[:size], rest[size:]
        end = re.match(habits.line, rest)
        rest = rest[end.end() :] if end else rest


def squeezed(raw):
    """A name with everything taken off that a server may pass over: space, controls, bytes beyond ASCII."""
    return re.sub(rb"[^!-~]", b"", raw).lower()


READERS = {
    "h11": strict,
    "by the length": lambda stream: lenient(Habits(length_first=True), stream),
    "by the last length": lambda stream: lenient(Habits(length_first=True, last_length=True), stream),
    "any coding with chunked in it": lambda stream: lenient(Habits(chunked=lambda value: b"chunked" in value.lower()), stream),
    "names squeezed": lambda stream: lenient(Habits(name=squeezed, chunked=lambda value: b"chunked" in squeezed(value)), stream),
    "underscores as dashes": lambda stream: lenient(Habits(name=lambda raw: squeezed(raw).replace(b"_", b"-")), stream),
    "bare LF ends a line": lambda stream: lenient(Habits(line=rb"\r?\n"), stream),
    "bare CR ends a line": lambda stream: lenient(Habits(line=rb"\r\n?"), stream),
}


def readings(stream):
    """What each reader makes of `stream`: method, target and body of each request, or `None` where it refuses."""
    found = {}
    for name, reader in READERS.items():
        try:
            found[name] = tuple((request.method, request.target, request.body) for request in reader(stream))
        except Unreadable:
            found[name] = None
    return found


#: What an application believes of the front end alone, by WSGI's name.
TRUSTED = {
    b"X_FORWARDED_PROTO",
    b"X_FORWARDED_FOR",
    b"X_FORWARDED_HOST",
    b"X_FORWARDED_PORT",
    b"X_FORWARDED_SSL",
    b"X_REAL_IP",
    b"FORWARDED",
    b"REMOTE_USER",
    b"X_REMOTE_USER",
    b"X_FORWARDED_USER",
    b"PROXY",
}


def spoofed(stream, mark=b"evil"):
    """Names of WSGI that an application would find a client's own word in."""
    try:
        requests = strict(stream)
    except Unreadable:
        return set()
    names = set()
    for request in requests:
        for name, value in request.fields:
            key = name.replace(b"-", b"_").upper()
            if key in TRUSTED and mark in value:
                names.add(key.decode())
    return names
