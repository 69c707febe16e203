"""The client that does nothing wrong while others attack: requests at a fixed rate, each on a connection of its own, by TLS.

It comes from another address than who attacks, as on the internet, and runs in a process of its own.
"""

import asyncio
import contextlib
import multiprocessing
import os
import ssl
import time

ADDRESS = "127.0.0.2"
#: Requests a second.
RATE = 50
#: A client that waits for longer than this has not been served.
DEADLINE = 3


async def watch(port, seconds):
    """Its 99th percentile in seconds, one that was not served counting as `DEADLINE`, and how many were not."""
    told = multiprocessing.Queue()
    process = multiprocessing.Process(target=begin, args=(port, seconds, told))
    process.start()
    latencies, failed = await asyncio.to_thread(told.get)
    process.join()
    return sorted(latencies)[int(len(latencies) * 0.99)], failed


def begin(port, seconds, told):
    with contextlib.suppress(PermissionError):
        # It stands for a machine of its own, and does not wait for who happens to have the processor.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    told.put(asyncio.run(ask_again(port, seconds)))


async def ask_again(port, seconds):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    began, asked = time.monotonic(), []
    while time.monotonic() < began + seconds:
        asked.append(asyncio.create_task(ask(port, context)))
        await asyncio.sleep(max(0, began + len(asked) / RATE - time.monotonic()))
    latencies = await asyncio.gather(*asked)
    return latencies, latencies.count(DEADLINE)


async def ask(port, context):
    began = time.monotonic()
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(ADDRESS, 0))
            writer.write(b"GET /well HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
    except OSError:
        return DEADLINE
    return time.monotonic() - began if answer.startswith(b"HTTP/1.1 200") else DEADLINE
