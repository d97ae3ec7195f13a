"""Serve the page on this machine, and nothing but the page.

gradio's app can do more than this page needs: it has routes for files, uploads and other servers. Here a guard stands
before it. It lets through only the few addresses that the page uses, and tells the browser to load nothing from
elsewhere. So no file of this machine can be read through the page, apart from gradio's own scripts and styles.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from dato.errors import DatoError

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::")
# What the page uses: itself, its scripts and styles, and gradio's queue.
ALLOWED = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|(assets|static)/[\w./@+-]+)?|"
    r"/gradio_api/(queue/(join|data)|heartbeat/\w+|reset|cancel|startup-events|run/\w+)/?"
)
# gradio builds functions at run time ('unsafe-eval') and has scripts in its page ('unsafe-inline').
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}

Scope, Receive, Send = dict[str, Any], Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        DatoError: if the port is occupied or may not be used, or the host is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        # After a restart the port is free at once. On Windows this option would let two programs share a port.
        if os.name != "nt":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DatoError(f"cannot listen at `host` {host}, `port` {port}: {reason}; give another `port`") from None
    return listening


def address(listening: socket.socket) -> str:
    """Return the page's address in the browser."""
    host, port = listening.getsockname()[:2]
    host = "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}"


def application(page: gr.Blocks, host: str) -> Guard:
    """Return the page as an ASGI application, behind the guard.

    Args:
        page: The page.
        host: The address at which it is served.
    """
    import gradio as gr
    from fastapi import FastAPI

    from dato.demo.page import head, style, theme

    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        theme=theme(),
        css=style(),
        head=head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=True,
        allowed_paths=[],
        max_file_size=0,
    )
    return Guard(app, None if host in EVERYWHERE else (*LOOPBACK, host))


class Guard:
    """Let through only what the page uses.

    Args:
        app: The application behind it.
        hosts: The names under which the page may be asked for; None: all. Otherwise a page of another site could
            give its own name this machine's address, and read what is here (DNS rebinding).
    """

    def __init__(self, app: Any, hosts: tuple[str, ...] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if not self._host_is_known(scope):
            await _refuse(send, 421, b"unknown host")
        elif not ALLOWED.fullmatch(scope["path"]) or ".." in scope["path"]:
            await _refuse(send, 404, b"not found")
        else:
            await self._app(scope, receive, _with_headers(send))

    def _host_is_known(self, scope: Scope) -> bool:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        return self._hosts is None or re.sub(r":\d+$", "", host) in self._hosts


def _with_headers(send: Send) -> Send:
    async def sends(message: dict) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            new = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message["headers"], *(item for item in new if item[0] not in present)]
        await send(message)

    return sends


async def _refuse(send: Send, status: int, why: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why})


def server_of(app: Guard) -> uvicorn.Server:
    """Return a server of an application. Its `run` takes the sockets at which it listens."""
    import uvicorn

    # The page keeps a connection open, so a graceful end would wait for it.
    return uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1))


def serve(app: Guard, listening: socket.socket) -> None:
    """Serve an application until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[listening])
