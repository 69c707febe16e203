"""What the tests ask of a WSGI application: it says what it saw, and does what the path and the query ask of it."""

import hashlib
import json
import os
import threading
import time
from urllib.parse import parse_qsl

inside = 0
peak = 0
noted = []
lock = threading.Lock()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = environ.get("QUERY_STRING", "")
    if path.endswith("/unread"):
        start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", "10")])
        return [b"not wanted"]
    if path.endswith("/slow"):
        return slow(float(query or "0"), start_response)
    if path.endswith("/note"):
        with lock:
            noted.append(query)
        # Whoever is in stays in while the file is there.
        while os.path.exists("hold"):
            time.sleep(0.01)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]
    if path.endswith("/noted"):
        with lock:
            answer = "\n".join(noted).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
        return [answer]
    if path.endswith("/raise"):
        raise ValueError("asked to")
    if path.endswith("/file"):
        # Each pair of the query is a header of the answer; `status` is its status.
        pairs = parse_qsl(query, keep_blank_values=True)
        status = next((value for name, value in pairs if name == "status"), "200 OK")
        start_response(status, [(name, value) for name, value in pairs if name != "status"])
        return [b""]
    if path.endswith("/page"):
        # The same, with a body that is worth compressing.
        start_response("200 OK", parse_qsl(query, keep_blank_values=True) + [("Content-Length", "4000")])
        return [b"text" * 1000]
    if path.endswith("/health_check") and query == "ready=1" and os.path.exists("unready"):
        start_response("400 Bad Request", [("Content-Type", "text/html"), ("Content-Length", "3")])
        return [b"not"]
    if path.endswith("/well"):
        # Its own health page: as the file `unwell` says, if there is one.
        status, text = open("unwell").read().split(":") if os.path.exists("unwell") else ("200 OK", "it is well")
        start_response(status, [("Content-Type", "text/plain")])
        return [text.encode()]
    if path.endswith("/where"):
        answer = os.getcwd().encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
        return [answer]
    if path.endswith("/digest"):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = ("%d %s" % (len(body), hashlib.sha256(body).hexdigest())).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
        return [answer]
    if path.endswith("/large"):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (bytes([number % 251]) * 65536 for number in range(int(query)))
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    seen["body"] = body.decode("latin-1")
    answer = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def slow(seconds, start_response):
    global inside, peak
    with lock:
        inside += 1
        peak = max(peak, inside)
    time.sleep(seconds)
    with lock:
        inside -= 1
        answer = str(peak).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
