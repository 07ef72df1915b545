"""The web server: a page, its sample pictures, and a WebSocket that translates frames.

There are three routes, and all that they can give is in memory before the first request: "/",
"/samples/NAME" from a fixed table, and "/ws". Nothing that a client sends is written or kept, and
no path of a request meets the file system. starlette and uvicorn live here only, and are imported
by the functions that need them. The rules and their reasons: docs/serve.md.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import palettes
from ..engine import Engine
from ..errors import BackendUnavailable
from . import protocol
from .guard import Guard, hosts
from .ledger import Account, Ledger
from .turns import SEND_SECONDS, Client, Turns

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp
    from starlette.websockets import WebSocket

log = logging.getLogger("pix2pix_fast")

MAX_MESSAGE = 2 << 20  # bytes of one WebSocket message; beyond it the connection closes with 1009
MAX_PIXELS = 1 << 20  # of one frame; 4 times as many would cost 300 MB while they last
MAX_HELD = 24 << 20  # bytes of all clients that wait here; then who holds most must go
MAX_CLIENTS = 64  # WebSockets at once
MAX_CONNECTIONS = 256  # of any kind; the next one gets 503
MAX_BAD = 8  # bad messages in a row, then the connection closes with 1008
PAUSE = 0.025  # seconds until a client is heard again after each, so that others hardly notice
HTTP_SECONDS = 10.0  # of a connection that is no WebSocket, its requests and answers included
GOODBYE = 0.25  # seconds from telling a client to go until the connection is cut
IDLE_SECONDS = 10.0  # after this silence a client's place may go to a newcomer, if all are taken
DEFAULT_MODELS = ("facades_labels2photo.safetensors", "edges2photo.safetensors")

Palette = tuple[tuple[str, str], ...]


def _shown(colours: Mapping[str, palettes.Rgb], names: Mapping[str, str] | None = None) -> Palette:
    """(name for people, "#rrggbb") of the classes in `names`, or of all."""
    names = names or {name: name.capitalize() for name in colours}
    return tuple((shown, f"#{bytes(colours[name]).hex()}") for name, shown in names.items())


CMP = _shown(palettes.FACADES)
CITYSCAPES = _shown(
    palettes.CITYSCAPES,
    {
        "road": "Road",
        "sidewalk": "Pavement",
        "building": "Building",
        "wall": "Wall",
        "fence": "Fence",
        "pole": "Pole",
        "traffic sign": "Sign",
        "vegetation": "Trees",
        "terrain": "Grass",
        "sky": "Sky",
        "person": "Person",
        "car": "Car",
    },
)


@dataclass(frozen=True)
class Served:
    """A model that is ready, and what the page must know of it."""

    engine: Engine
    file: str  # its name, without the suffix
    about: dict[str, Any]
    samples: dict[str, bytes] = field(default_factory=dict)  # name -> PNG


def serve(
    models: Sequence[str | os.PathLike[str]] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: Iterable[str] = (),
    max_pixels: int = MAX_PIXELS,
    ready: Callable[[str], object] = lambda url: None,
    **options: Any,
) -> None:
    """Serve the page until interrupted.

    models: paths of model files, as Engine takes them; none: the two in the package.
    host, port: the address to listen on; port 0 takes a free one.
    allow_hosts: further names, NAME or NAME:PORT, by which browsers may ask for the server.
    max_pixels: of one frame, padded to the model's multiple.
    ready: called with the page's address once it is bound.
    options: as Engine's.

    Errors: BackendUnavailable when starlette, uvicorn or websockets is missing; OSError when the
    address cannot be bound; ValueError for wrong arguments; what Engine raises.
    """
    check_libraries()
    if not 1 <= max_pixels <= 1 << 26:
        raise ValueError(f"max_pixels: expected 1 to {1 << 26}, got {max_pixels}")
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port))
        bound, bound_port = listener.getsockname()[:2]
        allowed = hosts(bound, bound_port, allow_hosts)
        opened = [stack.enter_context(open_model(path, **options)) for path in models or _own()]
        served = [one.served for one in opened]
        for one in served:
            height, width = one.about["height"], one.about["width"]
            multiple = 2 ** one.engine.info["depth"]
            least = (-(-height // multiple) * multiple) * (-(-width // multiple) * multiple)
            if least > max_pixels:
                raise ValueError(
                    f"max_pixels: expected at least {least} for {one.about['name']}, whose pictures "
                    f"are {width} x {height}, padded to a multiple of {multiple}; got {max_pixels}"
                )
        app = Guard(application(served, max_pixels), allowed, policy())
        server = make_server(app)
        shown = f"[{bound}]" if ":" in bound else bound
        ready(f"http://{shown}:{bound_port}/")
        server.run(sockets=[listener])


def check_libraries() -> None:
    """Raises BackendUnavailable, with the cure, if a library of the extra "web" is missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn.protocols.websockets.websockets_sansio_impl  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"the page needs starlette, uvicorn and websockets ({error}): "
            "pip install 'pix2pix_fast[web]'"
        ) from error


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A uvicorn server with our limits; `run(sockets=[...])` serves."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    base: Any = WebSocketsSansIOProtocol  # the older class holds half as much again of what waits

    class Brief(H11Protocol):
        """uvicorn waits for ever for a request that never comes whole."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._end = self.loop.call_later(HTTP_SECONDS, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._end.cancel()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._end.cancel()
            super().handle_websocket_upgrade(event)

    ledger = Ledger(MAX_HELD)

    class Curt(base):  # type: ignore[misc]
        """A WebSocket that says what it makes the server hold, and ends when its conversation does.

        uvicorn reads on at full speed, for 10 s, from a client that was told to go, and waits for
        ever for one that does not take what was sent.
        """

        def __init__(self, *arguments: Any, app_state: dict[str, Any], **options: Any) -> None:
            self.account = ledger.open(lambda: self.transport.abort())
            app_state = {**app_state, "account": self.account}  # as `websocket.state` has it
            super().__init__(*arguments, app_state=app_state, **options)
            self.close_timeout = GOODBYE

        def data_received(self, data: bytes) -> None:
            self.account.more("unread", len(data))
            super().data_received(data)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.account.hold("unsent", self.transport.get_write_buffer_size())
            self.stuck = self.loop.call_later(SEND_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self.account.hold("unsent", 0)
            self.stuck.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.account.close()
            super().connection_lost(exc)
            if parser := getattr(getattr(self, "conn", None), "parser", None):
                parser.close()  # a cycle: its last message would wait for the garbage collector

        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "websocket.close":
                self.transport.pause_reading()

        async def run_asgi(self) -> None:
            await super().run_asgi()
            self.loop.call_later(GOODBYE, self.transport.abort)

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="critical",  # what a client does wrong is its own business
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            http=Brief,
            ws=Curt,
            ws_max_size=MAX_MESSAGE,
            ws_max_queue=2,
            ws_per_message_deflate=False,  # no bombs, and pictures hardly shrink
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
    )


# Models


class open_model:  # noqa: N801 - reads as a verb: `with open_model(path) as one`
    """An Engine for the page, closed at the end. Raises ValueError for channels that no picture
    has."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        from .. import checkpoints
        from ..images import refuse_url

        refuse_url("model", os.fsdecode(path))
        source = checkpoints.read(path)
        ci, co = source.architecture.in_channels, source.architecture.out_channels
        if ci not in (1, 3) or co not in (1, 3):
            raise ValueError(
                f"model: the page shows pictures of 1 or 3 channels, {Path(path).name} has "
                f"{ci} in and {co} out"
            )
        engine = Engine(source, **options)
        stem = Path(path).stem
        self.served = Served(engine, stem, *_about(engine, source.card, stem))

    def __enter__(self) -> open_model:
        return self

    def __exit__(self, *_: object) -> None:
        self.served.engine.close()


def _own() -> list[Path]:
    folder = Path(str(files("pix2pix_fast") / "assets"))
    return [folder / name for name in DEFAULT_MODELS]


def _about(
    engine: Engine, card: dict[str, Any], stem: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page must know of a model, in plain short values, and its sample pictures."""
    info = engine.info
    words = f"{card.get('name', '')} {card.get('task', '')} {stem}".lower()
    palette: Palette = ()
    kind = "photo"
    if re.search(r"labels?\W*(2|to)", words):
        kind = "labels"
        palette = CITYSCAPES if "cityscapes" in words else CMP
    elif re.search(r"(edges?|drawing\b.*)\W*(2|to)", words):
        kind = "edges"
    samples: dict[str, bytes] = {}
    if palette is CMP:
        folder = files("pix2pix_fast") / "assets" / "pictures"
        pictures = sorted(folder.iterdir(), key=lambda path: path.name)
        samples = {path.name: path.read_bytes() for path in pictures if path.name.endswith(".png")}
    title = str(card.get("task") or card.get("name") or stem)[:80]
    about = {
        "title": title[:1].upper() + title[1:],
        "name": str(card.get("name") or stem)[:80],
        "kind": kind,
        "height": info["size"][0],
        "width": info["size"][1],
        "palette": [{"name": name, "colour": colour} for name, colour in palette],
        "samples": list(samples),
        "engine": f"{info['backend']} {info['isa']}, {info['precision']}, "
        f"{info['threads']} thread{'s' if info['threads'] != 1 else ''}",
    }
    return about, samples


# The application


def application(served: Sequence[Served], max_pixels: int = MAX_PIXELS) -> ASGIApp:
    """The three routes over models that are ready; wrap it in a Guard."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route, WebSocketRoute

    page = _page()
    samples = {name: data for one in served for name, data in one.samples.items()}
    turns = Turns(lambda frame, dropped: _translate(served[frame.model], frame, dropped))
    multiples = [2 ** one.engine.info["depth"] for one in served]
    hall = Hall(turns, multiples, max_pixels, _hello(served))

    async def index(request: Request) -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    async def sample(request: Request) -> Response:
        data = samples.get(request.path_params["name"])
        if data is None:
            return PlainTextResponse("404 Not Found\n", 404)
        return Response(data, media_type="image/png")

    async def lost(request: Request, error: Exception) -> Response:
        return PlainTextResponse("404 Not Found\n", 404)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        line = asyncio.create_task(turns.run())
        try:
            yield
        finally:
            line.cancel()
            with suppress(asyncio.CancelledError):
                await line

    routes = [
        Route("/", index),
        Route("/samples/{name}", sample),
        WebSocketRoute("/ws", hall.talk),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: lost})
    app.router.redirect_slashes = False
    return app


class Hall:
    """The clients that are in, and the conversation with each."""

    def __init__(self, turns: Turns, multiples: Sequence[int], max_pixels: int, hello: str) -> None:
        self._turns = turns
        self._multiples = multiples
        self._max_pixels = max_pixels
        self._hello = hello
        self._clients: set[Client] = set()

    async def talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        if not self._make_room():  # no waiting from here until the newcomer is in
            await websocket.close(1013, "all places are taken; try again later")
            return
        account: Account = websocket.state.account

        async def answer(message: bytes | str) -> None:
            key = "bytes" if isinstance(message, bytes) else "text"
            mine = object()
            account.hold(mine, len(message))
            try:
                await websocket.send({"type": "websocket.send", key: message})
            finally:
                account.hold(mine, 0)

        me = asyncio.current_task()
        assert me is not None
        client = Client(answer, me.cancel)
        self._clients.add(client)
        try:
            await answer(self._hello)
            while await self._hear(client, websocket, account):
                pass
        except asyncio.CancelledError:  # somebody called its `leave`
            with suppress(Exception):
                await asyncio.wait_for(websocket.close(1013, "idle; its place was needed"), 1)
            raise
        except Exception as error:  # it left in the middle of something
            log.debug("web: a client left: %r", error)
        finally:
            self._turns.remove(client)
            self._clients.discard(client)

    async def _hear(self, client: Client, websocket: WebSocket, account: Account) -> bool:
        """One message; whether another one may follow."""
        if client.bad >= MAX_BAD:
            await websocket.close(1008, f"{client.bad} bad messages in a row")
            return False
        if client.bad:
            await asyncio.sleep(PAUSE)
        message = await websocket.receive()
        if message["type"] != "websocket.receive":
            return False
        client.touched = time.monotonic()
        account.hold("unread", 0)
        data = message.get("bytes")
        size = len(message["text"] if data is None else data)
        try:
            if data is None:
                raise protocol.BadFrame("message: expected a binary frame, got text")
            self._turns.put(client, protocol.parse(data, self._multiples, self._max_pixels))
            account.hold("frame", size)  # in the slot, and websockets keeps the last message too
            account.hold("bad", 0)
        except protocol.BadFrame as error:
            client.bad += 1
            account.hold("bad", size)
            text = _error(str(error), error.number)
            await asyncio.wait_for(client.answer(text), SEND_SECONDS)
        return True

    def _make_room(self) -> bool:
        """Whether a newcomer fits; the longest silent client makes room for him."""
        if len(self._clients) < MAX_CLIENTS:
            return True
        client = min(self._clients, key=lambda client: client.touched)
        if time.monotonic() - client.touched < IDLE_SECONDS:
            return False
        self._clients.remove(client)
        self._turns.remove(client)
        client.leave()
        return True


def _hello(served: Sequence[Served]) -> str:
    limits = {"message": MAX_MESSAGE}  # of pixels the page sends as many as its model has
    titles = Counter(one.about["title"] for one in served)
    models = []
    for number, one in enumerate(served, 1):
        title = one.about["title"]
        if titles[title] > 1:  # two runs of one recipe: their cards say the same
            title = f"{number}. {one.file[:40]}: {title}"
        models.append({**one.about, "title": title})
    return json.dumps({"models": models, "limits": limits})


def _error(text: str, number: int | None) -> str:
    return json.dumps({"error": text, "number": number})


def _translate(one: Served, frame: protocol.Frame, dropped: int) -> bytes | str:
    """One frame through its model, in the worker thread; whatever fails becomes a message."""
    try:
        picture: Any = protocol.decode(frame)
        if one.engine.info["in_channels"] == 1:
            from PIL import Image

            picture = np.asarray(Image.fromarray(picture).convert("L"))
        start = time.perf_counter()
        result = one.engine.translate(picture)
        engine_ms = (time.perf_counter() - start) * 1e3
        if result.ndim == 2 or result.shape[2] == 1:
            result = np.repeat(result.reshape(*result.shape[:2], 1), 3, axis=2)
        return protocol.encode(frame, result, engine_ms, dropped)
    except (ValueError, TypeError, MemoryError) as error:
        return _error(str(error) or "not enough memory for this picture", frame.number)
    except Exception:
        log.exception("web: a frame failed")
        return _error("the server failed on this frame; its log says why", frame.number)


# The page


def _page() -> bytes:
    return (files("pix2pix_fast.web") / "page.html").read_bytes()


def policy() -> str:
    """The page's Content-Security-Policy: its one script and one style by their digests, and no
    address but its own."""
    page = _page()

    def digest(tag: bytes) -> str:
        parts = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in parts
        )

    return (
        f"default-src 'none'; script-src {digest(b'script')}; style-src {digest(b'style')}; "
        "img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self' ws://HOST wss://HOST; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket on the first address that `host` stands for."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ValueError(
            f"host: expected an address or name of this machine, got {host!r}: {error.strerror}"
        ) from None
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a server that stopped a moment ago does not block its port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        cure = {
            errno.EADDRINUSE: "; another program has it, --port 0 takes a free one",
            errno.EADDRNOTAVAIL: "; expected an address of this machine",
            errno.EACCES: "; ports below 1024 are the administrator's",
        }.get(error.errno or 0, "")
        raise OSError(
            error.errno, f"cannot listen on {host} port {port}: {error.strerror}{cure}"
        ) from None
    return listener
