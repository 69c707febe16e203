"""What a client can send to have two servers disagree where a request ends, whose it is, or who sent it.

HTTP/1.1 cases are bytes. HTTP/2 cases are lists of fields, data and trailers, which are sent without any check. `@` in them is
the number of the case, so that the backend can tell what it sees. `/smuggled` must never be asked of the backend unless the
front end has answered it as a request of its own.
"""

from dataclasses import dataclass, field

INNER = b"GET /smuggled-@ HTTP/1.1\r\nHost: localhost\r\nX: "
WHOLE_INNER = b"GET /smuggled-@ HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Http1:
    name: str
    stream: bytes


@dataclass
class Http2:
    name: str
    fields: list
    data: bytes = b""
    trailers: list = field(default_factory=list)
    #: Where it is not the length of `data` that is told.
    end: bool = True


def request(head, body=b"", line=b"POST /case-@ HTTP/1.1", host=b"Host: localhost\r\n"):
    return line + b"\r\n" + host + head + b"\r\n" + body


def chunked(data):
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


def codings():
    """`Transfer-Encoding` in disguise, beside `Content-Length` and alone."""
    names = [b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING", b"Transfer-Encoding ", b"Transfer-Encoding\t"]
    names += [b" Transfer-Encoding", b"\tTransfer-Encoding", b"Transfer_Encoding", b"Transfer-Encoding\x00", b"\x0bTransfer-Encoding"]
    names += [b"Transfer\xadEncoding", b"Transfer-\xc4\x93ncoding", b"X: y\nTransfer-Encoding", b"X: y\rTransfer-Encoding", b"Transfer-Encoding\x0c"]
    values = [b" chunked", b" Chunked", b" CHUNKED", b"chunked", b"\tchunked", b"  chunked", b"\x0bchunked", b"\x0cchunked", b" chunked ", b" chunked\t"]
    values += [b' "chunked"', b" 'chunked'", b" chunked, identity", b" identity, chunked", b" chunked, chunked", b" chunked,", b" ,chunked"]
    values += [b" x-chunked", b" chunkedx", b" cow, chunked", b" gzip, chunked", b" chunked;q=1", b" chunked; x", b" identity", b"", b" \x00chunked"]
    values += [b" chunked\x00", b" ch\tunked", b" chun\xc3\xaded", b" chun\x0bked", b"\r\n chunked", b"\r\n\tchunked", b" \r\n chunked", b" x\r\n chunked"]
    values += [b" chunked\r\n identity", b" chunked\r\nTransfer-Encoding: cow", b" cow\r\nTransfer-Encoding: chunked", b" chunked\r\nTransfer-Encoding: chunked"]
    lines = [name + b": chunked\r\n" for name in names] + [b"Transfer-Encoding:" + value + b"\r\n" for value in values]
    for line in dict.fromkeys(lines):
        shown = line.strip(b"\r\n").decode("latin-1").encode("unicode_escape").decode()
        body = b"0\r\n\r\n" + INNER
        yield Http1(f"length, then {shown}", request(b"Content-Length: %d\r\n" % len(body) + line, body))
        body = b"5c\r\n" + INNER
        yield Http1(f"{shown}, then length", request(line + b"Content-Length: 4\r\n", body + b"\r\n0\r\n\r\n"))
        yield Http1(f"{shown} alone", request(line, chunked(b"hello") + WHOLE_INNER))
    for version in (b"1.0", b"0.9", b"1.2"):
        line = b"POST /case-@ HTTP/" + version
        yield Http1(f"chunked in HTTP/{version.decode()}", request(b"Transfer-Encoding: chunked\r\n", chunked(b"hello") + WHOLE_INNER, line))


def lengths():
    """`Content-Length` that is not one number."""
    values = [b"+5", b"-5", b"5 5", b"5,5", b"5, 5", b"5, 6", b"0x5", b"5.0", b"5e0", b"05", b"0000000000000000000005", b"5;", b'"5"', b"5\x00", b"\x005"]
    values += [b"5\x0b", b"5 x", b"x5", b"", b" ", b"5\r\n 6", b"5\r\n\t", b"99999999999999999999", b"18446744073709551621", b"9223372036854775808", b"-0", b"1_0", b"\xef\xbc\x95"]
    for value in values:
        shown = value.decode("latin-1").encode("unicode_escape").decode()
        yield Http1(f"Content-Length of `{shown}`", request(b"Content-Length: " + value + b"\r\n", b"hello" + WHOLE_INNER))
    pairs = [(b"5", b"5"), (b"5", b"6"), (b"6", b"5"), (b"0", b"5"), (b"5", b"0"), (b"5", b""), (b"", b"5"), (b"5", b"x")]
    for one, other in pairs:
        head = b"Content-Length: " + one + b"\r\nContent-Length: " + other + b"\r\n"
        yield Http1(f"lengths `{one.decode()}` and `{other.decode()}`", request(head, b"hello" + WHOLE_INNER))
    for name in (b"Content-Length ", b"Content-Length\t", b" Content-Length", b"Content_Length", b"Content-Length\x00", b"\x00Content-Length", b"Content\xadLength", b"X: y\nContent-Length", b"X: y\rContent-Length"):
        shown = name.decode("latin-1").encode("unicode_escape").decode()
        yield Http1(f"`{shown}`", request(name + b": %d\r\n" % len(WHOLE_INNER), WHOLE_INNER))
        yield Http1(f"`{shown}` beside another", request(b"Content-Length: 0\r\n" + name + b": %d\r\n" % len(WHOLE_INNER), WHOLE_INNER))
    for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"BREW"):
        line = method + b" /case-@ HTTP/1.1"
        yield Http1(f"{method.decode()} with a body", request(b"Content-Length: %d\r\n" % len(WHOLE_INNER), WHOLE_INNER, line))
        yield Http1(f"{method.decode()} in chunks", request(b"Transfer-Encoding: chunked\r\n", chunked(WHOLE_INNER), line))


def chunks():
    """Chunks whose end can be read in two ways."""
    sizes = [b"5", b"05", b"0000000000000005", b"00000000000000005", b"+5", b"-5", b"0x5", b" 5", b"\t5", b"5 ", b"5\t", b"5\x0b", b"5;x", b"5;x=y", b'5;x="y"', b"5 ;x"]
    sizes += [b'5;x="\r\n"', b"5;\x00", b"5;x\n", b"5;x\r", b"5\r", b"5\n", b"5;x\x7f", b"FFFFFFFFFFFFFFFF", b"FFFFFFFFFFFFFFFFF", b"10000000000000005", b"g", b"", b"5,5", b"5 5", b"5.", b"5;" + b"x" * 20000]
    for size in sizes:
        shown = size[:24].decode("latin-1").encode("unicode_escape").decode()
        yield Http1(f"a chunk of `{shown}`", request(b"Transfer-Encoding: chunked\r\n", size + b"\r\nhello\r\n0\r\n\r\n" + WHOLE_INNER))
    ends = {"LF after the size": b"5\nhello\r\n0\r\n\r\n", "LF after the data": b"5\r\nhello\n0\r\n\r\n", "CR after the data": b"5\r\nhello\r0\r\n\r\n"}
    ends |= {"nothing after the data": b"5\r\nhello0\r\n\r\n", "other bytes after the data": b"5\r\nhelloXX0\r\n\r\n", "LF after the last": b"5\r\nhello\r\n0\n\r\n"}
    ends |= {"LF at the end": b"5\r\nhello\r\n0\r\n\n", "LF LF at the end": b"5\r\nhello\r\n0\n\n", "a last of 00": b"5\r\nhello\r\n00\r\n\r\n", "a last of 0;x": b"5\r\nhello\r\n0;x=y\r\n\r\n"}
    ends |= {"a last of -0": b"5\r\nhello\r\n-0\r\n\r\n", "a last of 0 and a space": b"5\r\nhello\r\n0 \r\n\r\n", "an empty line before a size": b"5\r\nhello\r\n\r\n0\r\n\r\n"}
    ends |= {"an extension with LF": b"5;\nxx\r\nhello\r\n0\r\n\r\n", "an extension that hides a size": b"2;\nxx\r\n50\r\n0\r\n\r\n" + WHOLE_INNER + b"0\r\n\r\n"}
    for what, body in ends.items():
        yield Http1(what, request(b"Transfer-Encoding: chunked\r\n", body + WHOLE_INNER))
    trailers = [b"Content-Length: 50", b"Transfer-Encoding: chunked", b"Host: evil", b"X-Forwarded-Proto: evil", b"X_Forwarded_Proto: evil", b"X: y\nZ: w", b"X : y", b" folded", b": empty", b"no colon", b"X: \x00", b"Connection: close"]
    for trailer in trailers:
        shown = trailer.decode("latin-1").encode("unicode_escape").decode()
        yield Http1(f"a trailer `{shown}`", request(b"Transfer-Encoding: chunked\r\nTrailer: X\r\n", b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n" + WHOLE_INNER))


def lines():
    """Line ends, request lines and fields that are not what they should be."""
    get = b"GET /case-@ HTTP/1.1\r\nHost: localhost\r\n"
    streams = {
        "LF after the request line": b"GET /case-@ HTTP/1.1\nHost: localhost\r\n\r\n",
        "LF after a field": b"GET /case-@ HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        "LF before the end": get + b"\n",
        "LF alone": b"GET /case-@ HTTP/1.1\nHost: localhost\n\n",
        "CR alone": b"GET /case-@ HTTP/1.1\rHost: localhost\r\r",
        "CR in a value": get + b"X: a\rY: b\r\n\r\n",
        "CR CR LF": get + b"X: a\r\r\n\r\n",
        "CR at the end of the request line": b"GET /case-@ HTTP/1.1\r\r\nHost: localhost\r\n\r\n",
        "LF CR": b"GET /case-@ HTTP/1.1\n\rHost: localhost\n\r\n\r",
        "empty lines first": b"\r\n\r\n" + get + b"\r\n",
        "a thousand empty lines first": b"\r\n" * 1000 + get + b"\r\n",
        "LF first": b"\n" + get + b"\r\n",
        "space first": b" " + get + b"\r\n",
        "NUL first": b"\x00" + get + b"\r\n",
        "a folded value": get + b"X: a\r\n b\r\n\r\n",
        "a folded value by tab": get + b"X: a\r\n\tb\r\n\r\n",
        "a folded first field": b"GET /case-@ HTTP/1.1\r\n Host: localhost\r\n\r\n",
        "a folded length": get + b"Content-Length:\r\n 5\r\n\r\nhello" + WHOLE_INNER,
        "a folded name": get + b"Content-\r\n Length: 5\r\n\r\nhello",
        "space before a colon": get + b"X : y\r\n\r\n",
        "tab before a colon": get + b"X\t: y\r\n\r\n",
        "an empty name": get + b": y\r\n\r\n",
        "no colon": get + b"X\r\n\r\n",
        "space in a name": get + b"X y: z\r\n\r\n",
        "NUL in a name": get + b"X\x00: z\r\n\r\n",
        "NUL in a value": get + b"X: a\x00b\r\n\r\n",
        "a control in a value": get + b"X: a\x01b\r\n\r\n",
        "DEL in a value": get + b"X: a\x7fb\r\n\r\n",
        "a name that is no token": get + b"(X): z\r\n\r\n",
        "a name beyond ASCII": get + b"X\xe9: z\r\n\r\n",
        "a quote in a name": get + b'"X": z\r\n\r\n',
        "a name of 9000 bytes": get + b"X" * 9000 + b": z\r\n\r\n",
        "a value of 70000 bytes": get + b"X: " + b"z" * 70000 + b"\r\n\r\n",
        "a thousand fields": get + b"".join(b"X%d: z\r\n" % n for n in range(1000)) + b"\r\n",
    }
    targets = [b"/case-@ /", b"/case-@\x00", b"/case-@\x7f", b"/case-@\xff", b"/case-@#x", b"/case-@\tx", b"//evil/case-@", b"/\\evil/case-@", b"\\case-@", b"case-@", b"?case-@", b"*", b"", b"/case-@%", b"/case-@%zz", b"/case-@%00"]
    targets += [b"/case-@%0d%0aX:%20y", b"http://localhost/case-@", b"http://other/case-@", b"http://evil@localhost/case-@", b"http:///case-@", b"https://localhost/case-@", b"ftp://localhost/case-@", b"localhost:80", b"http://localhost:x/case-@", b"/case-@?a=\nb", b"/case-@\x85", b"/case-@ HTTP/1.1", b"/../case-@", b"/./case-@", b"/x/%2e%2e/case-@", b"/case-@;/x", b"/" + b"x" * 9000 + b"case-@"]
    for target in targets:
        shown = target[:30].decode("latin-1").encode("unicode_escape").decode()
        streams[f"the target `{shown}`"] = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    starts = [b"GET  /case-@ HTTP/1.1", b"GET\t/case-@\tHTTP/1.1", b"GET /case-@  HTTP/1.1", b"GET /case-@ HTTP/1.1 ", b"GET /case-@ HTTP/1.1\t", b"GET /case-@", b"GET /case-@ ", b"GET /case-@ HTTP/1.", b"GET /case-@ HTTP/01.1", b"GET /case-@ HTTP/1.10", b"GET /case-@ HTTP/1.1x"]
    starts += [b"GET /case-@ http/1.1", b"GET /case-@ HTTP/2.0", b"GET /case-@ HTTP/1.2", b"GET /case-@ HTTP/3", b"GET /case-@ ICY/1.1", b"GET /case-@ HTTP /1.1", b"GET /case-@\x0bHTTP/1.1", b"get /case-@ HTTP/1.1", b"G\x00T /case-@ HTTP/1.1", b"G(T /case-@ HTTP/1.1", b" /case-@ HTTP/1.1", b"CONNECT localhost:80 HTTP/1.1", b"CONNECT /case-@ HTTP/1.1", b"GET / HTTP/1.1 /case-@ HTTP/1.1", b"PRI * HTTP/2.0", b"\x16\x03\x01 /case-@ HTTP/1.1", b"G" * 9000 + b" /case-@ HTTP/1.1"]
    for start in starts:
        shown = start[:40].decode("latin-1").encode("unicode_escape").decode()
        streams[f"the line `{shown}`"] = start + b"\r\nHost: localhost\r\n\r\n"
    hosts = {"none": b"", "two alike": b"Host: localhost\r\nHost: localhost\r\n", "two": b"Host: localhost\r\nHost: evil\r\n", "two, the other first": b"Host: evil\r\nHost: localhost\r\n"}
    hosts |= {shown: b"Host: " + value + b"\r\n" for shown, value in {"empty": b"", "with a path": b"localhost/evil", "with a user": b"evil@localhost", "with a space": b"localhost evil", "with a comma": b"localhost, evil", "with a bad port": b"localhost:other", "with a port beyond": b"localhost:99999", "with NUL": b"local\x00host", "with a query": b"localhost?x", "with a backslash": b"localhost\\evil", "beyond ASCII": b"loc\xe4lhost", "open bracket": b"[::1", "in brackets": b"[localhost]", "a quote": b'"localhost"', "a hash": b"localhost#x", "percent": b"local%68ost", "tab": b"local\thost"}.items()}
    hosts |= {"with space before the colon": b"Host : localhost\r\n", "folded": b"Host:\r\n localhost\r\n", "by underscore too": b"Host: localhost\r\nH_ost: evil\r\n", "indented": b" Host: localhost\r\n", "after LF": b"X: y\nHost: localhost\r\n"}
    for what, lines_ in hosts.items():
        streams[f"Host {what}"] = b"GET /case-@ HTTP/1.1\r\n" + lines_ + b"\r\n"
    for what, stream in streams.items():
        yield Http1(what, stream + (WHOLE_INNER if "alone" in what else b""))


def strangers():
    """Fields by which a client would be somebody else, take away what we say, or have the connection become another."""
    get = b"GET /case-@ HTTP/1.1\r\nHost: localhost\r\n"
    for name in (b"X-Forwarded-Proto", b"X_Forwarded_Proto", b"x_forwarded-proto", b"X-Forwarded_Proto", b"X-Forwarded-For", b"X_Forwarded_For", b"X-Forwarded-Host", b"X_Forwarded_Host", b"X-Forwarded-Port", b"X-Real-IP", b"X_Real_IP", b"Forwarded", b"Remote-User", b"Remote_User", b"X-Remote-User", b"X_Remote_User", b"X-Forwarded-User", b"Proxy", b"X-Forwarded-Proto ", b"X-Forwarded-Ssl"):
        shown = name.decode()
        yield Http1(f"`{shown}` of a client", get + name + b": evil\r\n\r\n")
        yield Http1(f"`{shown}` twice", get + name + b": evil\r\n" + name + b": evil\r\n\r\n")
    for option in (b"X-Forwarded-Proto", b"X-Forwarded-For", b"X-Real-IP", b"Host", b"Content-Length", b"Transfer-Encoding", b"Cookie", b"close, X-Forwarded-For", b"keep-alive, Host", b"\x00", b"X-Forwarded-For;x"):
        shown = option.decode("latin-1").encode("unicode_escape").decode()
        yield Http1(f"Connection of `{shown}`", request(b"Connection: " + option + b"\r\nContent-Length: 5\r\n", b"hello" + WHOLE_INNER))
    for head in (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Upgrade: evil\r\nConnection: Upgrade\r\n", b"Connection: Upgrade\r\n"):
        shown = head.split(b"\r\n")[0].decode()
        yield Http1(f"{shown}, and a request behind", get + head + b"\r\n" + WHOLE_INNER)
        yield Http1(f"{shown}, with a body", request(head + b"Content-Length: %d\r\n" % len(WHOLE_INNER), WHOLE_INNER))
    for value in (b"100-continue", b"100-Continue", b"x", b"100-continue, x", b"", b"y 100-continue"):
        yield Http1(f"Expect of `{value.decode()}`", request(b"Expect: " + value + b"\r\nContent-Length: %d\r\n" % len(WHOLE_INNER), WHOLE_INNER))
        yield Http1(f"Expect of `{value.decode()}` with GET", request(b"Expect: " + value + b"\r\n", WHOLE_INNER, b"GET /case-@ HTTP/1.1"))


def http2():
    base = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/case-@")]
    post = [(b":method", b"POST")] + base[1:]

    def with_field(name, value, fields=base):
        return fields + [(name, value)]

    def instead(name, value):
        return [(known, value if known == name else said) for known, said in base]

    for name in (b"transfer-encoding", b"Transfer-Encoding", b"transfer_encoding", b"transfer-encoding ", b" transfer-encoding"):
        yield Http2(f"h2 `{name.decode()}`: chunked", with_field(name, b"chunked", post), b"0\r\n\r\n" + WHOLE_INNER)
    for value in (b"chunked\r\nx: y", b"identity", b"chunked, identity"):
        yield Http2(f"h2 transfer-encoding of {value!r}", with_field(b"transfer-encoding", value, post), b"0\r\n\r\n" + WHOLE_INNER)
    for value in (b"0", b"5", b"4", b"6", b"500", b"-5", b"+5", b"5,5", b"0x5", b"5\r\nx: y", b"", b"05"):
        yield Http2(f"h2 content-length of {value!r} with 5 bytes", with_field(b"content-length", value, post), b"hello")
    yield Http2("h2 two lengths", post + [(b"content-length", b"5"), (b"content-length", b"6")], b"hello")
    yield Http2("h2 a length and no body", with_field(b"content-length", b"5", post))
    yield Http2("h2 a body of a GET", base, WHOLE_INNER)
    for value in (b"x\r\ny: z", b"x\ny: z", b"x\ry: z", b"x\x00", b" x", b"x ", b"x\x01", b"x\x7f", b"\r\n\r\n" + WHOLE_INNER):
        yield Http2(f"h2 a value of {value[:20]!r}", with_field(b"x-case", value))
    for name in (b"x\r\ny", b"x y", b"x:y", b"x\x00", b"", b"X-Upper", b"x\n", b"(x)", b"x\xe9", b"x: y\r\nz", b"content-length: 5\r\nx"):
        yield Http2(f"h2 a name of {name!r}", with_field(name, b"z"))
    for name, values in {
        b":path": (b"", b"case-@", b"/case-@ HTTP/1.1\r\nX: y", b"/case-@ x", b"/case-@\r\n", b"/case-@\x00", b"*", b"http://other/case-@", b"//evil/case-@", b"/case-@#x", b"/case-@\xff", b"/case-@\tx"),
        b":method": (b"", b"GET /smuggled-@ HTTP/1.1\r\nX:", b"G T", b"get", b"GET\r\n", b"CONNECT", b"GET\x00", b"GE(T"),
        b":scheme": (b"", b"http", b"ftp", b"https://evil/", b"https\r\nx: y", b"http://localhost/smuggled-@?"),
        b":authority": (b"", b"evil@localhost", b"localhost/x", b"localhost\r\nx: y", b"localhost evil", b"localhost:x", b"[::1", b"local\x00host", b"localhost, evil"),
    }.items():
        for value in values:
            yield Http2(f"h2 {name.decode()} of {value[:30]!r}", instead(name, value))
    for missing in (b":method", b":scheme", b":authority", b":path"):
        yield Http2(f"h2 without {missing.decode()}", [(name, value) for name, value in base if name != missing])
        yield Http2(f"h2 {missing.decode()} twice", base + [(missing, dict(base)[missing])])
        yield Http2(f"h2 {missing.decode()} after a field", [pair for pair in base if pair[0] != missing] + [(b"x", b"y"), (missing, dict(base)[missing])])
    yield Http2("h2 an unknown pseudo field", with_field(b":evil", b"x"))
    yield Http2("h2 :protocol without leave", with_field(b":protocol", b"websocket"))
    yield Http2("h2 :status of a client", with_field(b":status", b"200"))
    for value in (b"evil", b"localhost", b"", b"localhost:1"):
        yield Http2(f"h2 host of {value!r} beside :authority", with_field(b"host", value))
    yield Http2("h2 two hosts", base + [(b"host", b"localhost"), (b"host", b"evil")])
    for name, value in ((b"connection", b"close"), (b"connection", b"x-forwarded-for"), (b"keep-alive", b"x"), (b"proxy-connection", b"x"), (b"upgrade", b"websocket"), (b"te", b"gzip"), (b"te", b"trailers"), (b"http2-settings", b"x"), (b"expect", b"100-continue")):
        yield Http2(f"h2 {name.decode()}: {value.decode()}", with_field(name, value))
    for name in (b"x-forwarded-proto", b"x_forwarded_proto", b"x-forwarded-for", b"x_forwarded_for", b"x-real-ip", b"x_real_ip", b"proxy", b"remote-user", b"x_remote_user", b"forwarded"):
        yield Http2(f"h2 `{name.decode()}` of a client", with_field(name, b"evil"))
    yield Http2("h2 cookies in pieces", base + [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"cookie", b"c=3")])
    for name, value in ((b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b"host", b"evil"), (b":path", b"/smuggled-@"), (b"x-forwarded-proto", b"evil"), (b"x\r\ny", b"z"), (b"connection", b"close"), (b"x-plain", b"y")):
        yield Http2(f"h2 a trailer {name!r}", post, b"hello", [(name, value)])


def all_cases():
    return [case for group in (codings, lengths, chunks, lines, strangers, http2) for case in group()]


if __name__ == "__main__":
    print(len(all_cases()))
