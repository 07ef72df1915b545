"""Who may speak to the server at all, checked before anything else sees a request.

Host: only names that the server was started for; a foreign name that resolves to this machine (DNS
rebinding) gets 400. Origin: where a browser sends one, it must be the very origin of the page, and
a WebSocket must send one; else 403. CORS rules would not stop a foreign page's WebSocket, hence
this. Every answer carries the headers that keep the page to itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 8 << 20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=(), payment=()"),
    (b"cache-control", b"no-store"),
)
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Too Large",
}


@dataclass(frozen=True)
class Hosts:
    """The names that browsers may ask for: `own` with the port that is bound, `allowed` as given
    (NAME for any port, NAME:PORT for that one; these may sit behind somebody's TLS).

    Browsers leave a scheme's own port out, of Host and of Origin: 80 of http, 443 of https.
    """

    port: int
    own: frozenset[str]
    allowed: frozenset[str] = frozenset()

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server."""
        return self._has(host) or any(self._allows(host, port) for port in ("80", "443"))

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of the page which `host` serves."""
        if origin == f"http://{host}":
            return self._has(host) or self._allows(host, "80")
        return origin == f"https://{host}" and self._allows(host, "443")

    def _has(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and match[1] in self.own and int(match[2] or 80) == self.port

    def _allows(self, host: str, usual: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        return match[1] in self.allowed or f"{match[1]}:{match[2] or usual}" in self.allowed


def hosts(bound: str, port: int, allow: Iterable[str]) -> Hosts:
    """Hosts for an address that is bound. Raises ValueError for a name that no browser sends."""
    allowed = frozenset(name.lower() for name in allow)
    for name in allowed:
        if _HOST.fullmatch(name) is None:
            raise ValueError(
                "allow_host: expected a name or address such as studio.local, 192.168.1.5:8000 or "
                f"[fd00::5], got {name[:80]!r}"
            )
    literal = f"[{bound}]" if ":" in bound else bound
    if bound in ("0.0.0.0", "::") and not allowed:
        raise ValueError(
            f"host: {bound} listens on every network; say by which name browsers will ask for it, "
            "as in --allow-host 192.168.1.5"
        )
    return Hosts(port, frozenset((*LOOPBACK, literal.lower())), allowed)


class Guard:
    """ASGI wrapper: refuses what must not pass, adds the headers to what does.

    policy: the Content-Security-Policy, in which HOST becomes the host that was asked for.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, policy: str) -> None:
        self._app = app
        self._hosts = hosts
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        host = _only(scope, b"host")
        refusal = self._refusal(scope, host)
        policy = self._policy.replace("HOST", host or "") if not refusal else "default-src 'none'"

        async def guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                extra = [*_HEADERS, (b"content-security-policy", policy.encode())]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        if refusal:
            await _refuse(scope, receive, guarded, *refusal)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, scope: Scope, host: str | None) -> tuple[int, str] | None:
        if host is None or not self._hosts.knows(host):
            return 400, "Host: not a name of this server; --allow-host adds one"
        origin = _only(scope, b"origin")
        websocket = scope["type"] == "websocket"
        given = any(name == b"origin" for name, _ in scope["headers"])
        if (websocket or given) and not (origin and self._hosts.is_own_origin(origin, host)):
            return 403, "Origin: only this server's own page may do that"
        if websocket:
            return None
        if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
            return 411, "body: none is needed, and one in chunks has no length to check"
        length = _only(scope, b"content-length") or "0"
        if not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY:
            return 413, f"body: at most {MAX_BODY} bytes"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, "method: only GET and HEAD"
        return None


def _only(scope: Scope, name: bytes) -> str | None:
    """A header that came exactly once, in small letters; None otherwise."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1").lower() if len(values) == 1 else None


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, text: str) -> None:
    prefix = "websocket." if scope["type"] == "websocket" else ""
    if prefix:
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": text})
            return
    body = f"{status} {_REASONS[status]}. {text}\n".encode()
    headers: list[Any] = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body})
