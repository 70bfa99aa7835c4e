"""As much of a wandb server as its clients ask for, on the loopback."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.fake_wandb.kept import Kept


class WandbServer(Kept):
    """A server in threads of this process. broken: it answers everything with an error of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self._http = _Server(self)
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self, patch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
        """Clients that start in the block, in this process or from it, know this server alone."""
        patch.setenv("WANDB_BASE_URL", self.address)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()


class _Server(ThreadingHTTPServer):
    def __init__(self, state: WandbServer):
        self.state = state
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has ended is no error; any other is one of this server, and the test shall see it."""
        if not isinstance(error := sys.exc_info()[1], ConnectionError):
            self.state.refused.append(repr(error))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, code: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        state, body = self.server.state, self._body()
        if state.broken:
            self._reply(500, {"error": "broken"})
        elif self.path == "/graphql":
            asked = json.loads(body)
            try:
                self._reply(200, {"data": state.answer(asked["query"], asked.get("variables") or {})})
            except LookupError as error:
                self._reply(400, {"errors": [{"message": str(error)}]})
        elif self.path.startswith("/files/") and self.path.endswith("/file_stream"):
            self._reply(200, state.stream(self.path.split("/")[4], json.loads(body)))
        else:
            state.refused.append(f"POST {self.path}")
            self._reply(404, {})

    def do_PUT(self) -> None:
        body = self._body()
        if not self.server.state.broken:
            self.server.state.put(self.path, body)
        self._reply(500 if self.server.state.broken else 200, {})

    def do_GET(self) -> None:
        self.server.state.refused.append(f"GET {self.path}")
        self._reply(404, {})
