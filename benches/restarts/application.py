"""An application that takes a while to be loaded, writes down what it was asked, and says so."""

import os
import time
from urllib.parse import parse_qs

time.sleep(float(os.environ["LOADING"]))
EXECUTED = os.open(os.environ["EXECUTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def application(environ, start_response):
    if environ["PATH_INFO"] != "/health":
        number = parse_qs(environ["QUERY_STRING"])["n"][0]
        os.write(EXECUTED, f"{environ['REQUEST_METHOD']} {number}\n".encode())
        time.sleep(0.05)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
