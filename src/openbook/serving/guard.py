"""What a request must be before anything of it is read: from this machine's own pages or programs, or with a token.

A page of another site that a user has open can send requests to 127.0.0.1, and under a name of its own that its server
lets point there (DNS rebinding) it can read what comes back. Hence the Host must name this machine, an Origin must be
the page's own, and a POST must be JSON, which a form of another site cannot send.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Refusal(NamedTuple):
    status: int
    why: str


def is_loopback(host: str) -> bool:
    """Whether an address, or the host of a URL, is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Around an ASGI application: refuses, or hands on a request whose body has been read. loopback: whether it listens
    for this machine only. token: what every request must carry, "" for none. max_bytes: of a body."""

    def __init__(self, app: App, *, loopback: bool, token: str, max_bytes: int):
        self.app, self.loopback, self.token, self.max_bytes = app, loopback, token, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._of_headers(scope)
        body = b"" if refusal else await self._body(receive)
        if body is None:
            refusal = Refusal(413, f"The request is too large: at most {self.max_bytes:,} bytes.")
        if refusal:
            await _refuse(refusal, send)
            return
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replayed() -> Message:
            return next(whole, None) or await receive()

        await self.app(scope, replayed, send)

    def _of_headers(self, scope: Message) -> Refusal | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        if any(len(headers.get(name, ())) > 1 for name in (b"host", b"origin", b"authorization", b"content-type")):
            return Refusal(400, "A header that decides who may ask came twice.")
        host, origin, authorization, kind = (
            headers.get(name, [b""])[0].decode("latin-1")
            for name in (b"host", b"origin", b"authorization", b"content-type")
        )
        if self.loopback and not is_loopback(_hostname(host)):
            return Refusal(403, f"The Host must be this machine's own address or localhost, not {host!r}.")
        if origin and _address(origin) != host:
            return Refusal(403, f"Pages of other sites may not ask: the Origin is {origin!r}, the Host {host!r}.")
        if self.token and not hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode()):
            return Refusal(401, "The token is missing or wrong: send the header `Authorization: Bearer TOKEN`.")
        if scope["method"] == "POST" and kind.split(";")[0].strip().lower() != "application/json":
            return Refusal(415, "The request must be JSON: send the header `Content-Type: application/json`.")
        length = headers.get(b"content-length", [b"0"])[0]
        if length.isdigit() and int(length) > self.max_bytes:
            return Refusal(413, f"The request is too large: {int(length):,} bytes, at most {self.max_bytes:,}.")
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """None where it is longer than it may be."""
        parts, n = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            n += len(parts[-1])
            if n > self.max_bytes:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return b"".join(parts)


def _address(origin: str) -> str | None:
    """Of an Origin, its host and port; None where it is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _hostname(host: str) -> str:
    """Of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": refusal.why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
    # What may be left of a body that nobody reads would be taken for the next request.
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
