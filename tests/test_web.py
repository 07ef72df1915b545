"""The page's server over real sockets: what travels, who may speak, what is refused, who is next."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import environment, noise, tiny_model

from pix2pix_fast import BackendUnavailable, Engine, model

psutil = pytest.importorskip("psutil")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
client = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from pix2pix_fast.web import protocol, server  # noqa: E402
from pix2pix_fast.web.guard import Guard, hosts  # noqa: E402
from pix2pix_fast.web.ledger import Ledger  # noqa: E402
from pix2pix_fast.web.turns import Client, Turns  # noqa: E402

SIDE = 32
MAX_PIXELS = 1 << 18


class Web:
    """A server on a free port of the loopback, in a thread of this process."""

    def __init__(self, paths: list[str], **options: Any) -> None:
        self._stack = ExitStack()
        self._listener = server._listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        ready = [self._stack.enter_context(server.open_model(path, **options)) for path in paths]
        self.app = server.application([one.served for one in ready], MAX_PIXELS)
        guarded = Guard(self.app, hosts("127.0.0.1", self.port, ["studio.local"]), server.policy())
        self._server = server.make_server(guarded)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._stack.close()

    @contextmanager
    def socket(self) -> Iterator[Any]:
        """A client that has heard the greeting."""
        with self.plain() as talk:
            assert "models" in json.loads(talk.recv(10))
            yield talk

    def plain(self) -> Any:
        return client.connect(
            f"ws://{self.host}/ws",
            origin=f"http://{self.host}",
            max_size=None,
            compression=None,
            close_timeout=1,
            ping_interval=None,  # no second thread per client, which outlives its `with` a moment
        )

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    result = []
    for name, ci, co in (("tiny_labels2photo", 3, 3), ("gray", 1, 1)):
        made = tiny_model(ci=ci, co=co)
        card = {"name": name, "size": [SIDE, SIDE], "task": "<b>labels to photo</b>" * (ci == 3)}
        path = folder / f"{name}.safetensors"
        model.save(model.Model(made.architecture, made.tensors, card), path)
        result.append(str(path))
    return result


@pytest.fixture(scope="module")
def web(paths: list[str]) -> Iterator[Web]:
    running = Web(paths)
    yield running
    running.close()


def frame(
    pixels: np.ndarray | bytes,
    width: int = SIDE,
    height: int = SIDE,
    *,
    which: int = 0,
    form: int = 0,
    answer: int = 0,
    number: int = 1,
) -> bytes:
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    head = (b"P2P1", which, form, answer, 0, width, height, number)
    return protocol.FRAME.pack(*head) + data


def picture(answer: bytes) -> tuple[dict[str, Any], np.ndarray]:
    names = ["magic", "model", "form", "zero", "width", "height", "number", "dropped"]
    names += ["engine_ms", "server_ms"]
    head = dict(zip(names, protocol.ANSWER.unpack_from(answer), strict=True))
    body = answer[protocol.ANSWER.size :]
    if head["form"] == protocol.RGB:
        return head, np.frombuffer(body, np.uint8).reshape(head["height"], head["width"], 3)
    return head, np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def jpeg_of_scans(count: int) -> bytes:
    """A JPEG file of SIDE x SIDE that passes `count` times over a picture it says nothing about."""

    def segment(mark: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, mark, len(body) + 2) + body

    blocks = (SIDE // 8) ** 2
    data = b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64))
    data += segment(0xC2, struct.pack(">BHHB3B", 8, SIDE, SIDE, 1, 1, 0x11, 0))
    for table in (0x00, 0x10):  # one code of one bit, for DC and for AC: nothing follows
        data += segment(0xC4, bytes([table, 1] + [0] * 15 + [0]))
    data += segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8)
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes(blocks // 8)
    return data + scan * (count - 1) + b"\xff\xd9"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def runs(pixels: np.ndarray) -> bytes:
    """(h, w, 3) as runs of at most 7 equal pixels."""
    flat = pixels.reshape(-1, 3)
    starts = [0]
    for at in range(1, len(flat)):
        if at - starts[-1] == 7 or (flat[at] != flat[at - 1]).any():
            starts.append(at)
    made = np.zeros(len(starts), protocol.RUN)
    made["count"], made["colour"] = np.diff([*starts, len(flat)]), flat[starts]
    return made.tobytes()


DRAWING = noise((SIDE, SIDE, 3))


# What travels


def test_the_greeting_says_what_the_models_are(web: Web) -> None:
    with web.plain() as talk:
        hello = json.loads(talk.recv())
    first, second = hello["models"]
    assert first["kind"] == "labels" and second["kind"] == "photo"
    assert len(first["palette"]) == 12 and "townhouse.png" in first["samples"]
    assert (first["width"], first["height"]) == (SIDE, SIDE)
    assert hello["limits"] == {"message": server.MAX_MESSAGE}


def test_models_whose_cards_say_the_same_have_titles_of_their_own(
    tmp_path: Path, paths: list[str]
) -> None:
    files = [tmp_path / f"{run}.safetensors" for run in ("first", "second")]
    for path in files:
        made = tiny_model()
        card = {"name": "facades", "task": "facade labels to photo"}
        model.save(model.Model(made.architecture, made.tensors, card), path)
    bare = tmp_path / "bare.safetensors"
    model.save(model.Model(made.architecture, made.tensors), bare)
    with ExitStack() as stack:
        names = [*map(str, files), paths[1], str(bare)]
        ready = [stack.enter_context(server.open_model(name)).served for name in names]
        told = json.loads(server._hello(ready))["models"]
    assert [one["title"] for one in told] == [
        "1. first: Facade labels to photo",
        "2. second: Facade labels to photo",
        "Gray",
        "Bare",
    ]


def test_a_connection_too_many_gets_503(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    web = Web(paths[1:])
    try:
        assert web.get("/")[0] == 200
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            assert web.get("/")[0] == 503
    finally:
        web.close()


@pytest.mark.parametrize("form", ["RGB", "PNG", "RUNS"])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (40, 24)])
def test_a_frame_comes_back_as_the_engine_translates_it(
    web: Web, paths: list[str], form: str, size: tuple[int, int]
) -> None:
    pixels = noise((*size, 3)) // 128 * 255
    kind = protocol.FORMS.index(form)
    made = {"RGB": np.ndarray.tobytes, "RUNS": runs}
    data = made[form](pixels) if form in made else encoded(pixels, form)
    answer = 0 if form == "RUNS" else kind
    with web.socket() as talk, Engine(paths[0]) as engine:
        talk.send(frame(data, size[1], size[0], form=kind, answer=answer, number=77))
        head, result = picture(talk.recv(10))
        np.testing.assert_array_equal(result, engine.translate(pixels))
    assert (head["number"], head["model"], head["form"], head["dropped"]) == (77, 0, answer, 0)
    assert 0 < head["engine_ms"] <= head["server_ms"]


def test_jpeg_both_ways_and_a_gray_model(web: Web, paths: list[str]) -> None:
    smooth = np.full((SIDE, SIDE, 3), 90, np.uint8)
    with web.socket() as talk, Engine(paths[1]) as engine:
        data = encoded(smooth, "JPEG")
        talk.send(frame(data, which=1, form=protocol.JPEG, answer=protocol.PNG))
        head, result = picture(talk.recv(10))
        gray = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        expected = engine.translate(gray)
        np.testing.assert_array_equal(result, np.repeat(expected[:, :, None], 3, 2))
        talk.send(frame(data, form=protocol.JPEG, answer=protocol.JPEG))
        head, result = picture(talk.recv(10))
        assert head["form"] == protocol.JPEG and result.shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("hello", "expected a binary frame, got text"),
        (b"", "expected a header of 16 bytes, got 0"),
        (frame(DRAWING)[:15], "expected a header of 16 bytes, got 15"),
        (b"P2P9" + frame(DRAWING)[4:], "begin with P2P1, got 50325039"),
        (frame(DRAWING, which=2), "model: expected 0 to 1, got 2"),
        (frame(DRAWING, form=4), "form: expected 0 to 3, got 4"),
        (frame(DRAWING, form=3), "expected runs of 5 bytes, at most 1024 of them, got 3072"),
        (frame(runs(DRAWING) + bytes(5), form=3), "expected runs of 5 bytes, at most 1024"),
        (frame(runs(DRAWING)[:-5], form=3), "expected runs of 1024, got 1023"),
        (frame(b"\xff\xff\0\0\0" * 1000, form=3), "expected runs of 1024, got 65535000"),
        (frame(b"", form=3), "expected runs of 1024, got 0"),
        (frame(DRAWING, answer=3), "answer: expected 0 to 2, got 3"),
        (frame(DRAWING, answer=255), "answer: expected 0 to 2, got 255"),
        (frame(b"", 0, 5), "at least 1 x 1 pixel, got 0 x 5"),
        (frame(b"", 65535, 65535), "at most 262144 pixels and 16384 a side, got 65535 x 65535"),
        (frame(b"", 20000, 8), "16384 a side, got 20000 x 8"),
        (frame(b"", 516, 508), "got 516 x 508, padded to 520 x 512"),
        (frame(DRAWING)[:-1], "expected 3072 bytes for 32 x 32 RGB, got 3071"),
        (frame(DRAWING, form=2), "expected a PNG file, got something else"),
        (frame(encoded(DRAWING, "PNG"), form=1), "expected a JPEG file, got something else"),
        (frame(encoded(DRAWING, "PNG")[:-400], form=2), "pixels: .*damaged"),
        (frame(encoded(DRAWING, "PNG"), 9, 9, form=2), "9 x 9 as the header says, got a PNG"),
        (frame(encoded(DRAWING, "TIFF"), form=2), "expected a PNG file, got something else"),
    ],
)
def test_a_bad_message_is_answered_by_what_was_expected(
    web: Web, message: bytes | str, told: str
) -> None:
    with web.socket() as talk:
        talk.send(message)
        assert re.search(told, json.loads(talk.recv(10))["error"])
        talk.send(frame(DRAWING, number=5))  # and the conversation goes on
        assert picture(talk.recv(10))[0]["number"] == 5


# Who may speak


def upgrade(web: Web, host: str, origin: str | None) -> bytes:
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    lines += [f"Origin: {origin}"] if origin else []
    return "\r\n".join([*lines, "", ""]).encode()


def handshake(web: Web, host: str, origin: str | None) -> int:
    """The status of a WebSocket handshake with these headers."""
    with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
        raw.sendall(upgrade(web, host, origin))
        return int(raw.recv(64).split()[1])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:PORT", "localhost:PORT", "evil.example:PORT", "[::1]:9"]
)
@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:PORT",
        "http://localhost:PORT",
        "http://evil.example:PORT",
        "https://127.0.0.1:PORT",
        "null",
        None,
    ],
)
def test_only_the_same_origin_passes(web: Web, host: str, origin: str | None) -> None:
    host = host.replace("PORT", str(web.port))
    origin = origin and origin.replace("PORT", str(web.port))
    known = host in (f"127.0.0.1:{web.port}", f"localhost:{web.port}")
    own = origin == f"http://{host}"
    assert handshake(web, host, origin) == (101 if known and own else 403 if known else 400)
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    expected = 200 if known and (own or origin is None) else 403 if known else 400
    assert web.get("/", **headers)[0] == expected
    assert web.get("/samples/palace.png", **headers)[0] == expected


def test_an_allowed_host_may_sit_behind_tls(web: Web) -> None:
    for origin, status in (
        ("http://studio.local", 101),
        ("https://studio.local", 101),
        ("https://studio.local:444", 403),
    ):
        assert handshake(web, "studio.local", origin) == status
    assert handshake(web, "studio.local.evil.example", "http://studio.local.evil.example") == 400


@pytest.mark.parametrize(
    ("allowed", "host", "origins"),
    [
        ("studio.local:443", "studio.local", ["https"]),  # browsers leave the usual port out
        ("studio.local:443", "studio.local:443", ["http", "https"]),
        ("studio.local:80", "studio.local", ["http"]),
        ("studio.local:9000", "studio.local:9000", ["http", "https"]),
        ("studio.local:9000", "studio.local", []),
        ("studio.local", "studio.local:77", ["http", "https"]),
        ("studio.local:443", "127.0.0.1:8000", ["http"]),
    ],
)
def test_an_allowed_name_with_a_port(allowed: str, host: str, origins: list[str]) -> None:
    known = hosts("127.0.0.1", 8000, [allowed])
    assert known.knows(host) == bool(origins)
    found = [one for one in ("http", "https") if known.is_own_origin(f"{one}://{host}", host)]
    assert found == origins


def test_a_request_without_or_with_two_hosts_is_refused(web: Web) -> None:
    for hosts_given in ("", f"Host: {web.host}\r\nHost: {web.host}\r\n", "Host: \r\n"):
        with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
            raw.sendall(f"GET / HTTP/1.0\r\n{hosts_given}\r\n".encode())
            assert raw.recv(64).split()[1] == b"400"


def test_the_page_needs_nothing_from_elsewhere(web: Web) -> None:
    status, headers, page = web.get("/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for tag in (b"script", b"style"):
        (body,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(body).digest()).decode() in policy
    addresses = set(re.findall(rb"(?:https?|wss?)://[\w.]+", page))
    assert addresses <= {b"http://www.w3.org"}  # the name of SVG, which nobody asks for
    assert not re.search(rb"\son\w+=|\sstyle=|innerHTML|eval\(|localStorage|cookie", page)
    for name in ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Cache-Control"):
        assert headers[name]
    assert "Server" not in headers and "Set-Cookie" not in headers
    assert web.get("/nothing")[1]["X-Content-Type-Options"] == "nosniff"


# Limits


def test_bodies_and_methods(web: Web) -> None:
    assert web.get("/", "POST", Content_Length="5")[0] == 405
    assert web.get("/", "PUT")[0] == 405
    assert web.get("/", Content_Length=str((8 << 20) + 1))[0] == 413
    assert web.get("/", "POST", Content_Length="9" * 40)[0] in (400, 413)
    assert web.get("/ws")[0] == 404
    assert web.get("/", "HEAD")[0] == 200


def test_a_body_without_a_length_is_not_read(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
        head = f"GET / HTTP/1.1\r\nHost: {web.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw.sendall(head.encode())
        told = b""
        while part := raw.recv(1 << 16):  # it says so at once, and ends the connection
            told += part
    assert told.split()[1] == b"411" and b"connection: close" in told


def test_a_connection_without_a_request_is_cut(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HTTP_SECONDS", 0.3)
    half = f"GET / HTTP/1.1\r\nHost: {web.host}\r\n".encode()
    with web.socket() as talk:
        for sent in (b"", half, half + b"\r\n" + half):
            with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
                raw.sendall(sent)
                with suppress(ConnectionResetError):
                    while raw.recv(1 << 16):
                        pass
        talk.send(frame(DRAWING))  # a WebSocket may be silent for longer
        picture(talk.recv(10))


def test_no_path_reaches_a_file(web: Web, rng: np.random.Generator) -> None:
    parts = ["..", "%2e%2e", ".%2e", "..%2f", "%252e%252e", "..%5c", "\\", "%00", "samples", "etc"]
    parts += ["passwd", "server.py", "page.html", "palace.png%00.txt", "....", "~", "C:", "%c0%ae"]
    for _ in range(500):
        path = "/" + "/".join(rng.choice(parts, rng.integers(1, 7)))
        status, _, body = web.get(path)
        assert (status, body) == (404, b"404 Not Found\n"), path
    assert web.get("/samples/palace.png")[2].startswith(b"\x89PNG")


def test_a_message_beyond_two_megabytes_closes_the_connection(web: Web) -> None:
    for length, code in ((server.MAX_MESSAGE + 1, 1009), (1 << 40, 1009)):
        with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
            raw.sendall(upgrade(web, web.host, f"http://{web.host}"))
            while b"models" not in raw.recv(1 << 16):
                pass
            raw.sendall(struct.pack(">BBQ4x", 0x82, 0xFF, length))  # announced, not sent
            told = b""
            while part := raw.recv(1 << 16):
                told += part
            assert struct.pack(">H", code) in told[-128:]
    with web.socket() as talk, pytest.raises((ConnectionClosed, OSError)):
        talk.send(bytes(server.MAX_MESSAGE + 1))
        talk.recv(10)


@pytest.mark.parametrize("kind", ["no frame", "a picture that cannot be decoded"])
def test_bad_messages_in_a_row_close_the_connection(web: Web, kind: str) -> None:
    """And their sender is heard again only after a pause."""
    bad = b"nonsense" if kind == "no frame" else frame(DRAWING, form=protocol.PNG)
    with web.socket() as talk:
        start = time.monotonic()
        for _ in range(server.MAX_BAD):
            talk.send(bad)
            assert "error" in json.loads(talk.recv(10))
        if kind != "no frame":  # the worker counts it while the next message is awaited already
            talk.send(bad)
        assert time.monotonic() - start >= (server.MAX_BAD - 3) * server.PAUSE
        with pytest.raises(ConnectionClosed):
            talk.recv(10)
        assert talk.close_code == 1008


def test_a_picture_bomb_is_refused_by_its_header(web: Web) -> None:
    bomb = bytearray(encoded(np.zeros((512, 512, 3), np.uint8), "PNG"))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    before = psutil.Process().memory_info().rss
    with web.socket() as talk:
        talk.send(frame(bytes(bomb), 512, 512, form=protocol.PNG))
        assert "error" in json.loads(talk.recv(10))
    assert psutil.Process().memory_info().rss - before < 32 << 20


@pytest.mark.parametrize(
    ("form", "data", "told"),
    [
        ("JPEG", jpeg_of_scans(101), "a JPEG file of at most 100 scans"),
        (
            "JPEG",
            b"\xff\xd8" + b"\xff\xfe\0\2" * 1001 + encoded(DRAWING, "JPEG")[2:],
            "a JPEG file of at most 1000 parts",
        ),
        (
            "PNG",
            encoded(DRAWING, "PNG")[:33]
            + png_chunk(b"abCd", b"") * 1001
            + encoded(DRAWING, "PNG")[33:],
            "a PNG file of at most 1000 parts",
        ),
    ],
)
def test_a_picture_file_of_very_many_parts_is_refused(
    web: Web, form: str, data: bytes, told: str
) -> None:
    """A decoder would take 40 s for 2 MiB of scans."""
    Image.open(io.BytesIO(data)).load()  # nothing else is wrong with it
    with web.socket() as talk:
        talk.send(frame(data, form=protocol.FORMS.index(form)))
        assert told in json.loads(talk.recv(10))["error"]
        talk.send(frame(jpeg_of_scans(100), form=protocol.JPEG))
        picture(talk.recv(10))


def test_a_picture_that_exif_turns_on_its_side_is_refused() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(DRAWING[:24]).save(file, "JPEG", exif=exif)
    height, width = DRAWING[:24].shape[:2]
    one = protocol.Frame(0, protocol.JPEG, 0, width, height, 1, file.getvalue())
    with pytest.raises(protocol.BadFrame, match="EXIF turns on its side"):
        protocol.decode(one)


def test_text_in_a_png_file_is_not_unpacked() -> None:
    png = encoded(DRAWING, "PNG")
    texts = png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1000000))) * 60
    one = protocol.Frame(0, protocol.PNG, 0, SIDE, SIDE, 1, png[:33] + texts + png[33:])
    tracemalloc.start()
    np.testing.assert_array_equal(protocol.decode(one), DRAWING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_idle_clients_make_room_and_busy_ones_do_not(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        inside = [stack.enter_context(web.socket()) for _ in range(4)]
        monkeypatch.setattr(server, "MAX_CLIENTS", 4)
        late = stack.enter_context(web.plain())
        with pytest.raises(ConnectionClosed):
            late.recv(10)
        assert late.close_code == 1013
        monkeypatch.setattr(server, "IDLE_SECONDS", 0.0)
        for talk in inside[1:]:
            talk.send(frame(DRAWING))
            picture(talk.recv(10))
        newcomer = stack.enter_context(web.socket())
        with pytest.raises(ConnectionClosed):
            inside[0].recv(10)
        for talk in (*inside[1:], newcomer):
            talk.send(frame(DRAWING))
            picture(talk.recv(10))


def test_newcomers_who_come_together_do_not_exceed_the_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.0)

    class Slow:
        """A WebSocket whose client takes its time, and never says anything."""

        def __init__(self) -> None:
            self.state = SimpleNamespace(account=Ledger(1 << 20).open(lambda: None))

        async def accept(self) -> None:
            pass

        async def close(self, code: int, reason: str) -> None:
            await asyncio.sleep(0.02)

        async def send(self, message: Any) -> None:
            inside.add(self)

        async def receive(self) -> Any:
            most.append(len(hall._clients))
            await asyncio.Event().wait()

    async def run() -> None:
        tasks = [asyncio.create_task(hall.talk(Slow())) for _ in range(8)]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    inside: set[Any] = set()
    most: list[int] = []
    hall = server.Hall(Turns(lambda frame, dropped: b""), [1], 1, "hello")
    asyncio.run(run())
    assert len(inside) == 8 and max(most) == 2


def test_who_holds_most_is_let_go() -> None:
    gone: list[str] = []
    ledger = Ledger(100)
    small, large = ledger.open(lambda: gone.append("small")), ledger.open(lambda: gone.append("large"))
    small.more("unread", 20)
    small.more("unread", 20)
    large.hold("slot", 50)
    large.hold("slot", 60)
    assert (ledger.total, gone) == (100, [])
    small.hold("answer", 1)
    assert (ledger.total, gone) == (41, ["large"])
    large.hold("slot", 999)  # it is not here any more
    small.hold("unread", 0)
    assert (ledger.total, gone) == (1, ["large"])
    small.close()
    assert ledger.total == 0


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "all but a byte"])
def test_many_large_messages_do_not_fill_the_memory(web: Web, missing: bool) -> None:
    side = 512
    message = frame(bytes(side * side * 3), side, side)
    whole = struct.pack(">BBQI", 0x82, 0xFF, len(message), 0) + message
    payload = whole[:-1] if missing else whole * 5
    process, hello = psutil.Process(), upgrade(web, web.host, f"http://{web.host}")

    def send(raw: socket.socket) -> None:
        with suppress(OSError):  # cut, or not read from any more
            raw.sendall(payload)

    with web.socket() as first:
        first.send(message)  # the engine's own memory for this size
        picture(first.recv(30))
    with ExitStack() as stack, web.socket() as good:
        start = process.memory_info().rss
        lines = []
        for _ in range(62):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", web.port), 3))
            raw.sendall(hello)
            while b"models" not in raw.recv(1 << 16):
                pass
            lines.append(threading.Thread(target=send, args=(raw,)))
        for line in lines:
            line.start()
        most = 0
        while any(line.is_alive() for line in lines):
            good.send(frame(DRAWING))
            picture(good.recv(30))
            most = max(most, process.memory_info().rss - start)
        assert most < 64 << 20


def test_a_client_that_takes_no_answer_is_cut(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.3)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(10)
        raw.connect(("127.0.0.1", web.port))
        raw.sendall(upgrade(web, web.host, f"http://{web.host}"))
        drawing = frame(b"\xff\xff\0\0\0" * 4 + b"\4\0\0\0\0", 512, 512, form=protocol.RUNS)
        with pytest.raises((ConnectionError, BrokenPipeError)):
            while True:
                raw.sendall(struct.pack(">BBI", 0x82, 0x80 | len(drawing), 0) + drawing)
                time.sleep(0.05)


def hostile(rng: np.random.Generator) -> bytes | str:
    """A message that nobody should send."""
    good = bytearray(frame(DRAWING, number=9))
    png = frame(encoded(DRAWING, "PNG"), form=protocol.PNG, answer=int(rng.integers(3)))
    kind = int(rng.integers(8))
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 4000)))
    if kind == 1:
        return bytes(good[: int(rng.integers(len(good)))])
    if kind == 2:  # a header of chance
        good[4:16] = rng.bytes(12)
        return bytes(good)
    if kind == 3:
        return json.dumps({"model": -1, "width": 1e308, "pixels": "x" * int(rng.integers(3000))})
    if kind == 4:  # a damaged picture file
        data = bytearray(png)
        for at in rng.integers(16, len(data), int(rng.integers(1, 20))):
            data[at] = rng.integers(256)
        return bytes(data)
    if kind == 5:
        return png[: int(rng.integers(16, len(png)))]
    if kind == 6:
        return bytes(good) + rng.bytes(int(rng.integers(1, 100_000)))
    return "\0\U0001f600" * int(rng.integers(1, 500))


def test_two_thousand_hostile_messages(web: Web, rng: np.random.Generator) -> None:
    process = psutil.Process()

    def good() -> None:
        with web.socket() as talk:
            for number in range(5):
                talk.send(frame(DRAWING, number=number))
                assert picture(talk.recv(10))[0]["number"] == number

    good()
    threads, start = process.num_threads(), 0
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(web.socket())  # idle
        sent = 0
        while sent < 2000:
            with web.socket() as talk:
                try:
                    for _ in range(int(rng.integers(1, 40))):
                        talk.send(hostile(rng))
                        sent += 1
                        if rng.random() < 0.5:
                            talk.recv(0.02)
                    if rng.random() < 0.5:
                        talk.socket.close()  # leaves without a word
                except (ConnectionClosed, TimeoutError, OSError):
                    pass
            if sent > 500 and not start:
                start = process.memory_info().rss
        good()
        assert process.memory_info().rss - start < 64 << 20
    good()
    deadline = time.monotonic() + 10  # the clients are threads too, and end in their own time
    while process.num_threads() > threads + 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.num_threads() <= threads + 1


def test_broken_websockets(web: Web, rng: np.random.Generator) -> None:
    for _ in range(100):  # the layer below frames: bytes of chance after the handshake, or within
        with socket.create_connection(("127.0.0.1", web.port), 10) as raw:
            head = upgrade(web, web.host, f"http://{web.host}")
            raw.sendall(head[: int(rng.integers(1, 2 * len(head)))])
            raw.sendall(rng.bytes(int(rng.integers(1, 300))))
    with web.socket() as talk:
        talk.send(frame(DRAWING))
        picture(talk.recv(10))


# Who is next


def test_several_clients_keep_moving_beside_one_that_floods(web: Web) -> None:
    stop = threading.Event()
    served = [0, 0, 0]
    flooded: list[int] = []
    big = noise((256, 256, 3))

    def polite(which: int) -> None:
        with web.socket() as talk:
            for number in range(40):
                talk.send(frame(big, 256, 256, number=number))
                assert picture(talk.recv(30))[0]["number"] == number
                served[which] += 1

    def flood() -> None:
        with web.socket() as talk:
            reader = threading.Thread(target=read, args=(talk,))
            reader.start()
            number = 0
            while not stop.is_set():
                number += 1
                talk.send(frame(big, 256, 256, number=number))
            talk.close()
            reader.join()

    def read(talk: Any) -> None:
        try:
            while True:
                flooded.append(picture(talk.recv(30))[0]["dropped"])
        except (ConnectionClosed, TimeoutError):
            pass

    threads = [threading.Thread(target=polite, args=(which,)) for which in range(3)]
    flooder = threading.Thread(target=flood)
    flooder.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    flooder.join(30)
    assert served == [40, 40, 40]
    assert flooded[-1] > 0 and flooded == sorted(flooded)  # it was served too; the rest was dropped


def turns_of(work: Any) -> list[Any]:
    """Run `work(turns, client_of)` on a line of its own; what was served, in order."""
    served: list[Any] = []

    def translate(one: protocol.Frame, dropped: int) -> bytes:
        served.append((one.model, one.number, dropped))
        return b"%d" % one.number

    def frame_of(who: int, number: int) -> protocol.Frame:
        return protocol.Frame(who, 0, 0, 1, 1, number, b"\0\0\0")

    async def run() -> None:
        turns = Turns(translate)
        line = asyncio.create_task(turns.run())
        await asyncio.wait_for(work(turns, frame_of), 20)
        line.cancel()

    asyncio.run(run())
    return served


def test_turns_are_fair_and_the_newest_frame_wins() -> None:
    async def work(turns: Turns, frame_of: Any) -> None:
        done = asyncio.Event()
        counts = [0, 0, 0]
        clients: list[Client] = []

        def client_of(who: int) -> Client:
            async def answer(message: bytes | str) -> None:
                counts[who] += 1
                if sum(counts) >= 90:
                    done.set()
                turns.put(clients[who], frame_of(who, counts[who]))

            return Client(answer, lambda: None)

        clients += [client_of(who) for who in range(3)]
        for number in range(100):
            turns.put(clients[0], frame_of(0, 1000 + number))
        for who in (1, 2):
            turns.put(clients[who], frame_of(who, 0))
        await done.wait()
        assert max(counts) - min(counts) <= 1

    served = turns_of(work)
    assert served[0] == (0, 1099, 99)
    assert [who for who, _, _ in served[:9]] == [0, 1, 2] * 3


def test_a_client_that_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pix2pix_fast.web.turns.SEND_SECONDS", 0.2)
    left: list[bool] = []

    async def work(turns: Turns, frame_of: Any) -> None:
        async def never(message: bytes | str) -> None:
            await asyncio.Event().wait()

        got = asyncio.Queue[bytes | str]()
        deaf = Client(never, lambda: left.append(True))
        good = Client(got.put, lambda: None)
        for number in range(20):
            turns.put(deaf, frame_of(0, number))
            turns.put(good, frame_of(1, number))
            assert await got.get() == b"%d" % number
        while not left:
            await asyncio.sleep(0.01)
        turns.put(deaf, frame_of(0, 99))  # it is gone: nothing is computed for it

    served = turns_of(work)
    assert [number for who, number, _ in served if who == 0] == [0]
    assert left == [True]


# Starting


def test_a_missing_library_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'pix2pix_fast\[web\]'"):
        server.serve()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"host": "0.0.0.0", "port": 0}, "--allow-host"),
        ({"port": 0, "allow_hosts": ["http://x/"]}, "expected a name or address"),
        ({"port": 0, "allow_hosts": ["fd00::5"]}, r"or \[fd00::5\], got 'fd00::5'"),
        ({"max_pixels": 0}, "max_pixels: expected 1"),
        ({"models": ["https://example.com/m.safetensors"], "port": 0}, "local file"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        server.serve(**arguments)


def test_a_model_whose_padded_pictures_exceed_the_cap_is_refused(tmp_path: Path) -> None:
    made = tiny_model()
    multiple = 2**made.architecture.depth
    card = {"name": "odd", "size": [multiple + 1, multiple]}
    model.save(model.Model(made.architecture, made.tensors, card), tmp_path / "odd.safetensors")
    for cap in (multiple * (multiple + 1), 2 * multiple**2 - 1):
        with pytest.raises(ValueError, match=f"max_pixels: expected at least {2 * multiple**2} for odd"):
            server.serve([tmp_path / "odd.safetensors"], port=0, max_pixels=cap)


def test_a_model_of_five_channels_is_refused(tmp_path: Path) -> None:
    made = tiny_model(ci=5)
    model.save(made, tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="1 or 3 channels, five.safetensors has 5 in"):
        server.open_model(tmp_path / "five.safetensors")


def test_a_port_that_is_taken_is_said_plainly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}.*--port 0"):
            server.serve(port=port)


def test_a_host_that_is_none_is_said_plainly() -> None:
    with pytest.raises(ValueError, match="host: expected an address or name of this machine, got 'no"):
        server.serve(host="nowhere.invalid", port=0)
    with pytest.raises(OSError, match="expected an address of this machine"):
        server.serve(host="203.0.113.9", port=0)


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C to a child needs POSIX signals")
def test_the_verb_prints_what_is_bound_and_only_that_is(paths: list[str]) -> None:
    command = [sys.executable, "-m", "pix2pix_fast.cli", "serve", paths[0], "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd="/"
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            match = re.match(r"http://127\.0\.0\.1:(\d+)/ ", line)
            assert match, line
            child = psutil.Process(process.pid)
            bound = [(c.laddr.ip, c.laddr.port) for c in child.net_connections() if not c.raddr]
            assert bound == [("127.0.0.1", int(match[1]))]
            url = f"ws://127.0.0.1:{match[1]}"
            with pytest.raises(InvalidStatus):
                client.connect(f"{url}/ws", origin="http://evil.example")
            with client.connect(f"{url}/ws", origin=url.replace("ws", "http")) as talk:
                talk.recv(10)
                process.send_signal(signal.SIGINT)
                assert process.wait(15) == 130
            assert process.stderr.read() in ("", "pix2pix-fast: interrupted\n")
        finally:
            process.kill()
