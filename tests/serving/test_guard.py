"""Who may ask: this machine's programs and the page itself, or who has the token; before anything is read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from openbook.serving.guard import Guard, is_loopback

JSON = (b"content-type", b"application/json")


def ask(
    *headers: tuple[bytes, bytes],
    method: str = "POST",
    body: bytes = b"{}",
    loopback: bool = True,
    token: str = "",
    host: bytes = b"127.0.0.1:8000",
    kind: str = "http",
) -> tuple[int, str]:
    """(status, error); status 200 and the body where the request reached the application."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({"error": message["body"].decode()}).encode()})

    parts = [body[:1], body[1:]]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "headers": [(b"host", host), *headers] if host else list(headers)}
    asyncio.run(Guard(app, loopback=loopback, token=token, max_bytes=20)(scope, receive, send))
    if kind == "websocket":
        return sent[0]["code"], sent[0]["type"]
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize("host", [b"127.0.0.1:8000", b"localhost", b"[::1]:9", b"LOCALHOST:8000"])
def test_this_machine_by_its_names(host: bytes) -> None:
    assert ask(JSON, host=host) == (200, "{}")
    assert ask(JSON, (b"origin", b"http://" + host), host=host) == (200, "{}")


@pytest.mark.parametrize(
    "host", [b"evil.example:8000", b"", b"127.0.0.1.evil.example", b"localhost@evil.example", b"[::1", b"10.0.0.7"]
)
def test_another_name_that_points_here_is_refused(host: bytes) -> None:
    status, why = ask(JSON, host=host)
    assert status == 403 and why.startswith("The Host must be this machine's own address or localhost, not '")
    assert ask(host=host, method="GET")[0] == 403


@pytest.mark.parametrize(
    "origin", [b"https://evil.example", b"null", b"http://127.0.0.1:9999", b"http://localhost:8000", b"http://[x"]
)
def test_pages_of_other_sites_are_refused(origin: bytes) -> None:
    status, why = ask(JSON, (b"origin", origin))
    assert status == 403 and "Pages of other sites may not ask" in why


def test_what_a_form_can_send_is_refused() -> None:
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b""):
        assert ask((b"content-type", kind))[0] == 415
    assert ask((b"content-type", b"application/json; charset=utf-8")) == (200, "{}")
    assert ask(method="GET") == (200, "{}")


def test_the_token_is_asked_for_first_of_all() -> None:
    token = "a-token-of-some-length"
    right, wrong = ((b"authorization", f"Bearer {text}".encode()) for text in (token, "a-token-of-some-lengtH"))
    for headers in ((), (wrong,), ((b"authorization", token.encode()),), ((b"authorization", "Bearer é".encode()),)):
        status, why = ask(*headers, token=token, loopback=False, body=b"x" * 99)
        assert status == 401 and why.startswith("The token is missing or wrong")
    assert ask(JSON, right, token=token, loopback=False, host=b"server.example") == (200, "{}")
    assert ask(JSON, right, right, token=token, loopback=False)[0] == 400  # which of two would count?
    assert ask(JSON, token=token)[0] == 401  # also on this machine, where there is one


def test_a_body_is_read_up_to_its_limit() -> None:
    assert ask(JSON, body=b"x" * 20) == (200, "x" * 20)
    assert ask(JSON, body=b"x" * 21) == (413, "The request is too large: at most 20 bytes.")
    status, why = ask(JSON, (b"content-length", b"2100"))
    assert (status, why) == (413, "The request is too large: 2,100 bytes, at most 20.")


def test_websockets_are_closed() -> None:
    assert ask(kind="websocket") == (1008, "websocket.close")


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example")))
