"""The server of the live page: the standard library's, one page, and JSON.

Gradio, the habit of the field, would bring dozens of packages and seconds of start-up for a page of three sliders, and
its queue adds more to each picture than a small model takes to draw it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
import threading
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from cm_lightning.errors import CmError, ConfigError, flat
from cm_lightning.failures import describe
from cm_lightning.serve.painter import Painter
from cm_lightning.serve.wish import Wish

#: The longest body of a request, in bytes, and how much of a longer one is read before it is refused.
MOST_BYTES, _DRAINED = 2**20, 2**25
#: Requests that are drawn or wait for it at the same time. A page has one for each model.
MOST_AT_ONCE = 16
#: A connection that says nothing for so many seconds is closed.
_SILENCE_S = 30.0
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
}


@dataclass
class _Refused(Exception):
    """A request that is answered with a status and one line."""

    status: int
    line: str


class Server(ThreadingHTTPServer):
    """Serves the page, its description of the model, and pictures.

    Args:
        painter: draws the pictures.
        host: the address to listen on. On a loopback address only requests that name such a host are answered, so that
            no page of another site can reach the server under a name of its own.
        port: the port; 0 takes any that is free.

    Raises:
        ConfigError: the address or the port cannot be used.
    """

    daemon_threads = True
    request_queue_size = 8 * MOST_AT_ONCE  # with the default, 5, those that come at one moment are reset
    allow_reuse_address = os.name != "nt"  # where it would let two servers share a port
    allow_reuse_port = False

    def __init__(self, painter: Painter, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.painter, self.host = painter, host
        self.places = threading.BoundedSemaphore(MOST_AT_ONCE)
        address: Any
        try:
            self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConfigError(f"--host {host} is not an address of this machine: give 127.0.0.1") from error
        try:
            super().__init__(address[:2], _Handler)
        except PermissionError as error:
            raise ConfigError(f"--port {port} is reserved for the system: give another, such as 8000") from error
        except OSError as error:
            raise ConfigError(
                f"--port {port} of {host} cannot be used ({flat(error.strerror or str(error)).lower()}): give another, "
                "or --port 0 for any that is free"
            ) from error
        self.local = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would look up the machine's name, which may take seconds
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a browser that left is not an error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "cm-lightning", ""
    timeout = _SILENCE_S
    disable_nagle_algorithm = True  # or an answer may wait for the other side's acknowledgement
    wbufsize = -1  # head and body leave in one packet

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: there is a request for each movement of a slider."""

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        """Send what is made, or the line of an error; an error ends the connection, whose rest may not be read."""
        status, kind = 200, "application/json"
        try:
            self._check_host()
            kind, body = make()
        except Exception as error:
            self.close_connection = True
            status, line = _status(error)
            body = _json({"error": line})
            if status == 500:
                sys.stderr.write(f"error: {line}\n")
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _check_host(self) -> None:
        """Refuse a request under the name of another site, which had the browser look it up as this machine."""
        if self.server.local and not _names_loopback(self.headers.get("Host", "")):
            raise _Refused(403, f"this server answers to {self.server.url} only")

    def _get(self) -> tuple[str, bytes]:
        path = self._path()
        if path == "/model":
            return "application/json", _json(self.server.painter.describe())
        if path not in _FILES:
            raise _Refused(404, "page not found: see /")
        name, kind = _FILES[path]
        return kind, (_PAGE / name).read_bytes()

    def _post(self) -> tuple[str, bytes]:
        body = self._body()
        if self._path() != "/draw":
            raise _Refused(404, "path not found: POST to /draw")
        if self.headers.get_content_type() != "application/json":  # which a page of another site cannot send
            raise _Refused(415, "send application/json")
        wish = Wish.parse(_parsed(body))
        if not self.server.places.acquire(blocking=False):
            raise _Refused(503, "too many images are requested at once: try again")
        try:
            picture = self.server.painter.draw(wish)
        finally:
            self.server.places.release()
        image = b64encode(picture.png).decode()
        return "application/json", _json(
            {"image": image, "evaluations": picture.evaluations, "milliseconds": round(picture.milliseconds, 2)}
        )

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length:
            raise _Refused(411, "say the length of the body in Content-Length")
        if not (length.isascii() and length.isdigit()) or len(length) > 20:
            raise _Refused(400, "Content-Length must be a whole number")
        size = int(length)
        if size > MOST_BYTES:
            self._drain(min(size, _DRAINED))
            raise _Refused(413, f"the body has {size:,} bytes: send at most {MOST_BYTES:,}")
        return self.rfile.read(size)

    def _drain(self, size: int) -> None:
        """Read a body to no purpose: a client that is still sending does not see the answer."""
        while size > 0 and (part := self.rfile.read(min(size, 2**16))):
            size -= len(part)


def _status(error: Exception) -> tuple[int, str]:
    """The status and the line for an error."""
    if isinstance(error, _Refused):
        return error.status, error.line
    if isinstance(error, TimeoutError):
        return 408, "the body did not come"
    return 400 if isinstance(error, CmError) else 500, describe(error)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON: {flat(str(error))}") from error


def _names_loopback(header: str) -> bool:
    """Whether the header Host, with or without a port, names this machine from within."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
