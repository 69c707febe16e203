"""The application of the soak: small answers, slow ones, digests of what was sent, and a large body with a known digest."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs

from gunicorn.workers.gthread import ThreadWorker

# One block of the large body; `load.rs` sends the same blocks.
with open("block", "rb") as file:
    BLOCK = file.read()
BLOCKS = int(open("blocks").read())


class Worker(ThreadWorker):
    """Loses nothing when it is told to end.

    gunicorn's own resets the connections that wait to be accepted then, and nobody in front of it can know whether it has
    begun with them. The arbiter has unlinked the socket before it says TERM, so that no others come.
    """

    def get_thread_pool(self):
        worker = self

        class Pool(ThreadPoolExecutor):
            # After the last turn of gunicorn's loop, and before the sockets are closed. The signal's handler would be
            # too early: it can run while this very thread holds the lock of the pool.
            def shutdown(self, *args, **kwargs):
                for listener in worker.sockets:
                    for _ in range(worker.cfg.backlog):
                        # Does nothing where none waits.
                        worker.accept(listener.getsockname(), listener)
                super().shutdown(*args, **kwargs)

        return Pool(max_workers=self.cfg.threads)


def application(environ, start_response):
    query = parse_qs(environ.get("QUERY_STRING", ""))
    # A route that comes and goes has the same below its prefix.
    page = environ["PATH_INFO"].rsplit("/", 1)[-1]
    if page == "hello":
        return text("hello " + query["n"][0], start_response)
    if page == "slow":
        time.sleep(int(query["ms"][0]) / 1000)
        return text("hello " + query["n"][0], start_response)
    if page == "digest":
        return text(digest(environ), start_response)
    if page == "large":
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(BLOCK) * BLOCKS))])
        return (number.to_bytes(8, "big") + BLOCK[8:] for number in range(BLOCKS))
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]


def digest(environ):
    """The length and the SHA-256 of the body."""
    left = int(environ.get("CONTENT_LENGTH") or 0)
    length, sum_ = 0, hashlib.sha256()
    while left > 0:
        piece = environ["wsgi.input"].read(min(left, 1 << 16))
        if not piece:
            break
        left -= len(piece)
        length += len(piece)
        sum_.update(piece)
    return "%d %s" % (length, sum_.hexdigest())


def text(answer, start_response):
    answer = answer.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
