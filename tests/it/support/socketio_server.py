"""A socket.io server that says its name, and at which address it listens."""

import asyncio
import sys

import socketio
from aiohttp import web

name = sys.argv[1]
server = socketio.AsyncServer(async_mode="aiohttp")
application = web.Application()
server.attach(application, socketio_path="ws/socket.io")


@server.event
async def who(sid):
    return name


async def main():
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("listens on", "%s:%d" % runner.addresses[0][:2], flush=True)


loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.run_forever()
