"""`watch`: the report of a run as a page on 127.0.0.1 that renews itself while the run goes on."""

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openbook.errors import OpenBookError
from openbook.reporting.report import render
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say_result

HOST = "127.0.0.1"
READ = ("summary.json", "metrics.csv", "predictions.jsonl", "config.yaml", "environment.json")


class LivePage:
    """The page of a run folder, made anew only when one of the files that it shows has changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: tuple[str, str] = ("", "")
        self._making = threading.Lock()  # matplotlib's settings are those of the whole process

    def state(self) -> str:
        """A text that differs whenever one of the files does."""
        found = [(path.stat().st_mtime_ns, path.stat().st_size) for path in self._files() if path.is_file()]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def page(self) -> str:
        """The report as it is now."""
        with self._making:
            state = self.state()
            if self._made[0] != state:
                self._made = state, render(self.folder, live=state)
            return self._made[1]

    def _files(self) -> list[Path]:
        return [self.folder / name for name in READ]


class Handler(BaseHTTPRequestHandler):
    """`/`, the page, and `/state`, by which the page learns that there is a newer one; nothing else, and no file."""

    def __init__(self, live: LivePage, *args: object):
        self.live = live
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer, if the request was meant for this server: a page of another site that has its own name point to
        127.0.0.1 sends that name as the host."""
        _, port = self.connection.getsockname()
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._send(403, "text/plain", "this server answers to 127.0.0.1 and localhost alone\n")
            return
        answers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html", self.live.page),
            "/state": ("text/plain", self.live.state),
        }
        if self.path not in answers:
            self._send(404, "text/plain", "there is only one page here: /\n")
            return
        kind, answer = answers[self.path]
        try:
            self._send(200, kind, answer())
        except (OpenBookError, OSError) as error:  # a folder that is gone, a file that is being replaced
            self._send(503, "text/plain", f"{error}\n")

    def _send(self, code: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        with suppress(ConnectionError):  # a page that was closed meanwhile
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """A line per request would only hide the address."""


def watch(run: str, port: str) -> None:
    """Serve the report of a run until Ctrl-C. OpenBookError where there is no such run or the port is taken."""
    folder = RunFolder.existing(run).path
    with server(folder, port) as serving:
        say_result(f"{folder} at http://{HOST}:{serving.server_address[1]}/ (Ctrl-C ends it; the run goes on)")
        serving.serve_forever()


def server(folder: Path, port: str) -> ThreadingHTTPServer:
    """Bound, but not serving yet. port: "0" for any that is free."""
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise OpenBookError("not a port", where="--port", got=port, expected="a whole number from 0 to 65535")
    try:
        return ThreadingHTTPServer((HOST, int(port)), partial(Handler, LivePage(folder)))
    except OSError as error:
        raise OpenBookError(
            "the port cannot be used",
            where="--port",
            got=f"{port} ({error.strerror})",
            expected="one that is free",
            action="--port 0 takes any that is free (make watch PORT=0).",
        ) from error
