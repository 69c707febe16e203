"""Connects to a socket.io server again and again, and says over what and with whom it has spoken."""

import asyncio
import sys

import socketio


async def main(url, transports):
    for _ in range(6):
        client = socketio.AsyncClient(reconnection=False)
        await client.connect(url, socketio_path="ws/socket.io", transports=transports)
        answers = {await client.call("who", timeout=5) for _ in range(4)}
        print(client.transport(), ",".join(sorted(answers)), flush=True)
        await client.disconnect()


asyncio.run(main(sys.argv[1], sys.argv[2].split(",")))
