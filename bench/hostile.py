"""The page's server beside clients that mean it ill: what a good client notices, and what it costs.

    python bench/hostile.py                    # hostile messages and 50 idle connections

Phases alternate, quiet and hostile, so that both see the same machine. The server is a process of its
own, as `pix2pix-fast serve` starts it. So is the hostile client: its messages are made and masked before
the clock runs, as a client elsewhere would take no time of this machine's. The good client draws: it
sends a 256 x 256 frame, waits for the answer and sends the next.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import machine
import numpy as np
import psutil
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from pix2pix_fast.web import protocol

SIDE = 256
LINES = 4  # hostile connections at once
FORK = multiprocessing.get_context("fork")  # the messages need not travel


def frame(pixels: bytes, side: int, form: int, number: int) -> bytes:
    return protocol.FRAME.pack(protocol.MAGIC, 0, form, 0, 0, side, side, number) + pixels


def hostile(rng: np.random.Generator) -> tuple[int, bytes]:
    """(opcode, payload) of a message that nobody should send: eight kinds."""
    side = int(rng.choice((32, SIDE)))
    drawing = rng.integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    good, png = frame(drawing.tobytes(), side, 0, 9), bytearray(frame(file.getvalue(), side, 2, 9))
    kind = int(rng.integers(8))
    if kind == 0:
        return 2, rng.bytes(int(rng.integers(4000)))
    if kind == 1:
        return 2, good[: int(rng.integers(len(good)))]
    if kind == 2:  # a header of chance
        return 2, good[:4] + rng.bytes(12) + good[16:]
    if kind == 3:
        return 1, json.dumps({"model": -1, "pixels": "x" * int(rng.integers(3000))}).encode()
    if kind == 4:  # a damaged picture file
        for at in rng.integers(16, len(png), int(rng.integers(1, 20))):
            png[at] = rng.integers(256)
        return 2, bytes(png)
    if kind == 5:
        return 2, bytes(png[: int(rng.integers(16, len(png)))])
    if kind == 6:
        return 2, good + rng.bytes(int(rng.integers(1, 100_000)))
    return 1, ("\0\U0001f600" * int(rng.integers(1, 500))).encode()


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket message, under the mask 0 that changes nothing."""
    size = len(payload)
    short = struct.pack(">B", 0x80 | size) if size < 126 else None
    length = short or (
        struct.pack(">BH", 0xFE, size) if size < 1 << 16 else struct.pack(">BQ", 0xFF, size)
    )
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def attack(port: int, messages: list[bytes], seconds: float, sent: Any) -> None:
    """Send them round and round as fast as they are taken, over connections that open again."""
    todo, lock = itertools.cycle(messages), threading.Lock()
    end = time.perf_counter() + seconds
    request = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()

    def read(talk: socket.socket) -> None:
        with suppress(OSError):
            while talk.recv(1 << 16):
                pass

    def line() -> None:
        while time.perf_counter() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as talk:
                talk.sendall(request)
                reader = threading.Thread(target=read, args=(talk,), daemon=True)
                reader.start()
                while reader.is_alive() and time.perf_counter() < end:
                    with lock:
                        message = next(todo)
                    talk.sendall(message)
                    with sent.get_lock():
                        sent.value += 1

    threads = [threading.Thread(target=line) for _ in range(LINES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def server() -> Any:
    """(process, port) of `pix2pix-fast serve` with the package's models."""
    command = [sys.executable, "-P", "-m", "pix2pix_fast.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.match(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert match
            yield psutil.Process(process.pid), int(match[1])
        finally:
            process.terminate()


def plain(port: int) -> Any:
    """A client of the page, as a context manager."""
    origin: Any = f"http://127.0.0.1:{port}"
    return connect(f"ws://127.0.0.1:{port}/ws", origin=origin, compression=None)


def draw(talk: ClientConnection, seconds: float, going: Any = lambda: False) -> list[float]:
    """ms of each frame of a client that draws for so long, and as long as `going()`."""
    message, times = frame(bytes(SIDE * SIDE * 3), SIDE, 0, 1), []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or going():
        talk.send(message)
        answer = talk.recv(20)
        times.append((time.perf_counter() - start) * 1e3)
        assert isinstance(answer, bytes), answer
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--messages", type=int, default=500, help="different ones, sent again and again"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a phase")
    arguments = parser.parse_args()
    print(machine.card())
    rng = np.random.default_rng(0)
    messages = [masked(*hostile(rng)) for _ in range(arguments.messages)]
    with server() as (process, port), ExitStack() as stack:
        talk = stack.enter_context(plain(port))
        talk.recv(10)  # the greeting
        draw(talk, 1.0)
        for _ in range(50):
            stack.enter_context(plain(port))
        before, rows, peak, total = process.memory_info().rss, [], 0, 0
        for _ in range(arguments.rounds):
            quiet = draw(talk, arguments.seconds)
            sent = FORK.Value("i", 0)
            enemy = FORK.Process(target=attack, args=(port, messages, arguments.seconds, sent))
            enemy.start()
            loud = draw(talk, 0.0, enemy.is_alive)
            total += sent.value
            rows.append(
                (*np.percentile(quiet, (50, 95)), *np.percentile(loud, (50, 95)), len(loud))
            )
            peak = max(peak, process.memory_info().rss)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    print("quiet p50   p95   hostile p50   p95   ratio of p95   frames meanwhile")
    for q50, q95, h50, h95, count in rows:
        print(f"{q50:9.1f} {q95:5.1f} {h50:13.1f} {h95:5.1f} {h95 / q95:14.2f} {count:18}")
    ratio = statistics.median(h95 for *_, h95, _ in rows) / statistics.median(r[1] for r in rows)
    print(
        f"{total} hostile messages, {os.cpu_count()} cores: the good client's p95 is {ratio:.2f} times "
        f"its quiet one; memory {before / 2**20:.0f} -> {peak / 2**20:.0f} MiB; server alive: {alive}"
    )


if __name__ == "__main__":
    main()
