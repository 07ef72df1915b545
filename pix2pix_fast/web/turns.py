"""Who is next: each client has room for one waiting frame, and clients take turns.

    client's frame -> its slot (a newer one replaces it) -> the line -> the engine -> its answer

A client stands in the line at most once, and lines up again behind the others only when its last
answer has left: nobody can have more than one frame waiting and one answer on the way, however
fast he sends or however slowly he reads. One frame is computed at a time, as it has all threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from .protocol import Frame

log = logging.getLogger("pix2pix_fast")

SEND_SECONDS = 20.0  # a client that does not take his answer within this is let go


class Client:
    """One WebSocket's place: its slot, its counters, and how to answer it."""

    def __init__(
        self, answer: Callable[[bytes | str], Awaitable[None]], leave: Callable[[], object]
    ) -> None:
        self.answer = answer
        self.leave = leave
        self.frame: Frame | None = None
        self.dropped = 0
        self.bad = 0  # messages in a row that were no picture
        self.in_line = False
        self.served = False  # its frame is being computed or its answer is on the way
        self.gone = False
        self.touched = time.monotonic()


class Turns:
    """The line. `translate(frame, dropped)` runs in the one worker thread and gives the message."""

    def __init__(self, translate: Callable[[Frame, int], bytes | str]) -> None:
        self._translate = translate
        self._line: deque[Client] = deque()
        self._wake = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    def put(self, client: Client, frame: Frame) -> None:
        """A client's newest frame; one that still waits in its slot is dropped for it."""
        if client.frame is not None:
            client.dropped += 1
        client.frame = frame
        self._line_up(client)

    def remove(self, client: Client) -> None:
        client.gone = True
        client.frame = None

    async def run(self) -> None:
        """Serve for ever; ends by being cancelled."""
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "pix2pix_fast.web")
        try:
            while True:
                while not self._line:
                    self._wake.clear()
                    await self._wake.wait()
                client = self._line.popleft()
                client.in_line = False
                frame, client.frame = client.frame, None
                if frame is None or client.gone:
                    continue
                client.served = True
                message = await loop.run_in_executor(worker, self._translate, frame, client.dropped)
                client.bad = client.bad + 1 if isinstance(message, str) else 0
                task = asyncio.create_task(self._send(client, message))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
        finally:
            worker.shutdown(wait=False, cancel_futures=True)
            for task in self._sending:
                task.cancel()

    def _line_up(self, client: Client) -> None:
        waits = client.frame is not None and not client.served and not client.in_line
        if waits and not client.gone:
            client.in_line = True
            self._line.append(client)
            self._wake.set()

    async def _send(self, client: Client, message: bytes | str) -> None:
        try:
            if not client.gone:
                await asyncio.wait_for(client.answer(message), SEND_SECONDS)
        except Exception as error:  # it left, or it does not read: nobody else may notice
            log.debug("web: a client is let go: %r", error)
            self.remove(client)
            with suppress(Exception):
                client.leave()
        finally:
            client.served = False
            self._line_up(client)
