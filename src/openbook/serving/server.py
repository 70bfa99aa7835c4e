"""The process that listens: the address is taken before a model is loaded, and signals end it or swap."""

import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openbook.config.evaluation import ServeConfig
from openbook.errors import OpenBookError
from openbook.serving.guard import Guard, is_loopback
from openbook.utils.console import say, say_result

TOKEN = "OPENBOOK_TOKEN"
LEAST_TOKEN = 16  # characters
BACKLOG = 4096  # connections that the kernel keeps while the server is busy; it may have a lower limit of its own
FORMAT_BYTES = 4096  # of a request, beside its questions


def check_installed() -> None:
    """OpenBookError where the extra `serve` is not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise OpenBookError(
            "answering over HTTP needs FastAPI and uvicorn",
            got=str(error),
            action="Run `pip install 'openbook[serve]'`.",
        ) from error


def token_of(config: ServeConfig) -> str:
    """The token that requests must carry, "" for none; OpenBookError where there must be one, or a better one."""
    make = 'python -c "import secrets; print(secrets.token_urlsafe())"'
    where, token = TOKEN, os.environ.get(TOKEN, "").strip()
    if config.token_file:
        where = f"serve.token_file: {config.token_file}"
        try:
            token = Path(config.token_file).read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OpenBookError("the token cannot be read", where=where, got=str(error)) from error
    elif not token and not is_loopback(config.host):
        raise OpenBookError(
            "whoever reaches this address could ask: a token is needed",
            where=f"serve.host: {config.host}",
            action=f"Set {TOKEN} in the environment (`{make}` makes one) or serve.token_file, or serve 127.0.0.1.",
        )
    if (token or config.token_file) and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise OpenBookError(
            "a token that could be guessed, or that no header can carry",
            where=where,
            got=f"{len(token)} characters",
            expected=f"at least {LEAST_TOKEN}, of ASCII without spaces at its ends",
            action=f"`{make}` makes one.",
        )
    return token


def bound_socket(host: str, port: int) -> socket.socket:
    """The address, taken, and nobody is listened to yet; OpenBookError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> OpenBookError:
    return OpenBookError(
        "cannot listen here",
        where=f"serve.host={host} serve.port={port}",
        got=error.strerror or str(error),
        action="serve.port=0 takes a port that is free.",
    )


def url_of(bound: socket.socket) -> str:
    """Where it is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: Any, bound: socket.socket, config: ServeConfig, token: str) -> Any:
    """uvicorn's Server of an ASGI application behind its guard; it listens on `bound` once it runs."""
    import uvicorn

    # JSON may write each character as two escapes of 6 bytes.
    most = FORMAT_BYTES + config.max_queries * (12 * config.max_characters + 4)
    options = uvicorn.Config(
        Guard(app, loopback=is_loopback(bound.getsockname()[0]), token=token, max_bytes=most),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        server_header=False,
        proxy_headers=False,  # a client's address is the one it has
        timeout_graceful_shutdown=30,
    )
    return uvicorn.Server(options)


def run_server(
    app: Any,
    bound: socket.socket,
    config: ServeConfig,
    token: str,
    *,
    told: str,
    on_hangup: Callable[[], object] | None = None,
) -> None:
    """Serve until a signal ends it; what is being answered then is answered first. told: what is said once requests are
    heard. on_hangup: what SIGHUP does, in a thread of its own."""
    raise_file_limit()
    server = server_of(app, bound, config, token)
    if on_hangup is not None:
        signal.signal(signal.SIGHUP, lambda *_: _in_thread(on_hangup))
    try:
        bound.listen(BACKLOG)  # what comes before the server runs waits in the kernel
    except OSError as error:  # another process has begun to listen here meanwhile
        host, port = bound.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error
    say_result(told)
    server.run(sockets=[bound])


def _in_thread(call: Callable[[], object]) -> None:
    def reported() -> None:
        try:
            call()
        except OpenBookError as error:
            say(f"not swapped: {error}")

    threading.Thread(target=reported, name="swap", daemon=True).start()  # it need not end before the process


def raise_file_limit() -> None:
    """Each connection is an open file, and many systems allow 1,024 of them where nobody asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
