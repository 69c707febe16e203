"""The application of `vestibule demo`: plain WSGI under the server of Python's own standard library.

    PORT=8000 DEMO=1 python3 application.py FOLDER

listens on that port of loopback, as a program of `backends` does, until TERM; the file FOLDER/ready says that it does. If by then the demonstration (the process DEMO,
which has begun our guard) has gone without having removed FOLDER, its own, that goes as well.
"""

import hashlib
import html
import json
import os
import re
import secrets
import shutil
import signal
import socketserver
import sys
import threading
import time
from urllib.parse import parse_qs, quote
from wsgiref import simple_server

FOLDER = os.path.abspath(sys.argv[1])
FILES = os.path.join(FOLDER, "files")
# So many uploads are kept; the oldest goes first.
KEPT = 8

uploads = {}  # token: the name it was uploaded with, in the order of their coming
lock = threading.Lock()


def application(environ, start_response):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path == "/":
        status, headers, body = page(environ)
    elif path == "/upload" and method == "POST":
        status, headers, body = upload(environ)
    elif path.startswith("/files/"):
        status, headers, body = download(path.split("/")[2])
    elif path == "/sample":
        status, headers, body = send_file("sample.txt", ("Content-Type", "text/plain; charset=utf-8"))
    elif path == "/missing":
        status, headers, body = send_file("not-there.txt")
    elif path == "/slow":
        # Longer than the `timeout` of its route; nobody waits for the answer.
        threading.Event().wait(4)
        status, headers, body = text("200 OK", "The application took its time.")
    elif path.startswith("/small/"):
        status, headers, body = text("200 OK", "It was small enough.")
    else:
        status, headers, body = text("404 Not Found", "The application has no such page.")
    start_response(status, headers + [("Cache-Control", "no-store")])
    return [] if method == "HEAD" else [body]


def text(status, message):
    body = (message + "\n").encode()
    return status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))], body


def send_file(name, *headers):
    """Vestibule sends the file: the application only names it."""
    path = os.path.join(FILES, name)
    # A WSGI header is text of Latin-1 that stands for bytes (PEP 3333).
    return "200 OK", [*headers, ("X-Sendfile", os.fsencode(path).decode("latin-1"))], b""


def upload(environ):
    name = parse_qs(environ.get("QUERY_STRING", "")).get("name", ["file"])[0][:200]
    left = length = int(environ.get("CONTENT_LENGTH") or 0)
    token, digest = secrets.token_hex(8), hashlib.sha256()
    with open(os.path.join(FILES, token), "wb") as file:
        while left:
            part = environ["wsgi.input"].read(min(left, 1 << 16))
            if not part:
                break
            left -= len(part)
            digest.update(part)
            file.write(part)
    with lock:
        uploads[token] = name
        surplus = list(uploads)[:-KEPT]
        for old in surplus:
            del uploads[old]
    for old in surplus:
        os.remove(os.path.join(FILES, old))
    answer = {"name": name, "size": length - left, "sha256": digest.hexdigest(), "url": f"/files/{token}"}
    body = json.dumps(answer).encode()
    return "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))], body


def download(token):
    with lock:
        name = uploads.get(token)
    if name is None:
        return text("404 Not Found", f"There is no such upload; the last {KEPT} are kept.")
    # Never shown, only saved: what was uploaded is no page of ours.
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return send_file(token, ("Content-Type", "application/octet-stream"), ("Content-Disposition", disposition))


def page(environ):
    saw = [
        ("URL", url(environ), "from X-Forwarded-Proto and Host"),
        ("Client", environ.get("HTTP_X_FORWARDED_FOR"), "from X-Forwarded-For; what browsers say of it is dropped"),
        ("REMOTE_ADDR", environ.get("REMOTE_ADDR"), "who connected to the application: Vestibule"),
        ("Protocol", environ.get("SERVER_PROTOCOL"), "between Vestibule and the application"),
    ]
    saw += [(name, value, "") for name, value in headers_of(environ) if name.startswith("X-")]
    values = {
        "saw": "".join(map(row, saw)),
        "headers": "".join(row((name, value, "")) for name, value in headers_of(environ)),
        "configuration": html.escape(configuration()),
    }
    # In one pass, so that nothing in a value is taken for a name.
    body = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], PAGE).encode()
    return "200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))], body


def url(environ):
    scheme = environ.get("HTTP_X_FORWARDED_PROTO", "http")
    return f"{scheme}://{environ.get('HTTP_HOST', '')}{quote(environ['PATH_INFO'], encoding='latin-1')}"


def headers_of(environ):
    spelled = lambda key: key[5:].replace("_", "-").title().replace("Ip", "IP")
    return sorted((spelled(key), value) for key, value in environ.items() if key.startswith("HTTP_"))


def row(cells):
    name, value, note = (html.escape(cell or "") for cell in cells)
    note = f" <small>{note}</small>" if note else ""
    return f"<tr><th scope=row>{name}</th><td><code>{value}</code>{note}</td></tr>\n"


def configuration():
    with open(os.path.join(FOLDER, "vestibule.yml"), encoding="utf-8", errors="replace") as file:
        return file.read()


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self):
        # Without the name of this machine, for which HTTPServer asks the resolver, which may take long to fail.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address
        self.setup_environ()


class Handler(simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        """Vestibule writes an access log; one is enough."""


def end(*_):
    # Whoever is killed is gone a moment after we are told.
    for _ in range(20):
        with open("/proc/%d/status" % os.getppid()) as guard:
            begun_by = re.search(r"^PPid:\s+(\d+)", guard.read(), re.M)[1]
        if begun_by != os.environ["DEMO"]:
            shutil.rmtree(FOLDER, ignore_errors=True)
            break
        time.sleep(0.01)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
# The variables of this process are not those of a request: HTTP_PROXY would look like a header.
simple_server.ServerHandler.os_environ = {}
with open(os.path.join(FOLDER, "page.html"), encoding="utf-8") as file:
    PAGE = file.read()
server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.set_app(application)
open(os.path.join(FOLDER, "ready"), "w").close()
server.serve_forever()
