"""A browser's websocket to docassemble's live help, which connects again by itself as socket.io's clients do.

    live_help.py http://127.0.0.1:8080/ ORIGIN

Until it is ended, it says by line what has come to pass: `open`, `heard` (what it had sent has come back), `closed CODE`, where
1006 is an end without a word, and `refused` (an attempt to connect again that has failed); each with the time of the
monotonic clock before it. Needs python-socketio[client].
"""

import struct
import sys
import time

import socketio
import websocket

code = 1006
read = websocket.WebSocket.recv_data_frame


def recv_data_frame(*arguments, **named):
    """The code of the close frame, which the client keeps to itself."""
    global code
    opcode, frame = read(*arguments, **named)
    if opcode == websocket.ABNF.OPCODE_CLOSE and len(frame.data) >= 2:
        code = struct.unpack("!H", frame.data[:2])[0]
    return opcode, frame


websocket.WebSocket.recv_data_frame = recv_data_frame


def say(*what):
    print(f"{time.monotonic():.3f}", *what, flush=True)


def main():
    base, origin = sys.argv[1:]
    space = "/wsinterview"
    # One Origin and one Host, ours; and as patient as a browser's client.
    options = {"suppress_origin": True, "host": origin.split("//")[1]}
    client = socketio.Client(request_timeout=20, websocket_extra_options=options)

    def opened():
        global code
        code = 1006
        say("open")
        client.emit("terminate", namespace=space)

    def heard(*_):
        say("heard")
        client.sleep(0.5)
        if client.connected:
            client.emit("terminate", namespace=space)

    client.on("connect", opened, namespace=space)
    # The daemon sends this very event back.
    client.on("terminate", heard, namespace=space)
    client.on("disconnect", lambda *_: say("closed", code), namespace=space)
    client.on("connect_error", lambda *_: say("refused"), namespace=space)
    query = "?i=docassemble.base:data/questions/default-interview.yml"
    headers = {"Origin": origin}
    client.connect(base + query, socketio_path="/ws/socket.io/", namespaces=[space], transports=["websocket"], headers=headers)
    client.wait()


main()
