"""A Hub for the tests: the routes that the Hugging Face clients call, on loopback, in memory, with faults on demand.

`with HubServer() as hub:` serves at `hub.endpoint`. Clients read their settings at import, so they run in processes of
their own with `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_DISABLE_XET=1` (Xet, the real Hub's block storage, is not served;
large files go through Git LFS). Routes and headers follow what `huggingface_hub` sends and reads.
"""

import re
import secrets
import socket
import socketserver
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .routes import Request, Response, answer
from .store import HubError, Repo

FAULTS = ("drop", "reset", "corrupt")


class LoggedRequest(NamedTuple):
    """What the log keeps of a request: never a header, a query or a body, so never a token. Status 0: cut off."""

    method: str
    path: str
    status: int
    user: str | None


@dataclass
class Fault:
    method: str | None
    path: re.Pattern
    status: int | str
    retry_after: int | None
    times: int
    after: int


@dataclass
class HubState:
    """What the routes work on: users by token, repositories by type and id, and uploads granted but not yet done."""

    endpoint: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    grants: dict[str, tuple[Repo, str, int]] = field(default_factory=dict)


class HubServer:
    """The test Hub. `user` and `token` are a first user's; `add_user` makes more.

    Args:
        user (`str`, *optional*, defaults to `"tester"`): the first user's name, which is also a namespace.
    """

    def __init__(self, user: str = "tester"):
        self.user = user
        self.state = HubState()
        self.token = self.add_user(user)
        self.log: list[LoggedRequest] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _LoopbackServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = self.state.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_user(self, name: str) -> str:
        """Make a user; returns the token."""
        token = "hf_" + secrets.token_hex(17)
        self.state.tokens[token] = name
        return token

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """A repository's content, whoever may see it: `.files(revision)`, `.history()`, ...

        Raises:
            KeyError: there is no such repository.
        """
        return self.state.repos[repo_type, repo_id]

    def fail(
        self,
        method: str | None = None,
        path_pattern: str = "",
        *,
        status: int | str = 500,
        retry_after: int | None = None,
        times: int = 1,
        after: int = 0,
    ) -> None:
        """Let coming requests fail. A client can order the same by POST `/_test/fail` with these arguments as JSON.

        Args:
            method (`str`, *optional*): only this method; by default all.
            path_pattern (`str`, *optional*): regular expression searched in the path (without the query).
            status (`int` or `str`, *optional*, defaults to 500): an HTTP status that is answered in place of doing
                anything; `"drop"`: the connection is closed after half of the body, of the request where it has
                one, otherwise of the answer; `"reset"`: the same by a TCP reset, which clients see as another
                error; `"corrupt"`: one byte of that body is changed.
            retry_after (`int`, *optional*): seconds in a `Retry-After` header, with an HTTP status.
            times (`int`, *optional*, defaults to 1): how many requests fail.
            after (`int`, *optional*, defaults to 0): how many matching requests pass before.

        Raises:
            ValueError: `status` is neither an error status nor one of the words above.
        """
        if status not in FAULTS and not (isinstance(status, int) and 400 <= status < 600):
            raise ValueError(f"status is {status!r}; allowed are 400 to 599 and {', '.join(FAULTS)}")
        self._faults.append(Fault(method, re.compile(path_pattern), status, retry_after, times, after))

    def requests(self, method: str, path_pattern: str = "") -> list[LoggedRequest]:
        """The logged requests of a method whose path matches, oldest first."""
        return [entry for entry in self.log if entry.method == method and re.search(path_pattern, entry.path)]

    def _take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method in (None, method) and fault.path.search(path):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, request: Request) -> Response:
        if (request.method, request.path) == ("POST", "/_test/fail"):
            self.fail(**request.json())
            return Response.json({})
        with self._lock:
            try:
                return answer(self.state, request)
            except HubError as error:
                headers = {"X-Error-Message": str(error)}
                if error.code:
                    headers["X-Error-Code"] = error.code
                if error.commit:
                    headers["X-Repo-Commit"] = error.commit
                return Response.json({"error": str(error)}, error.status, headers)


class _LoopbackServer(ThreadingHTTPServer):
    hub: HubServer
    request_queue_size = 128  # the default of 5 refuses parallel downloads

    def server_bind(self) -> None:
        # HTTPServer looks its own name up, which waits for a DNS server where there is none.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away, killed or cut off on purpose, is no error of the server; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: together they would wait 40 ms each
    server: _LoopbackServer

    def do_GET(self) -> None:
        hub, target = self.server.hub, urlsplit(self.path)
        path = unquote(target.path)
        size = int(self.headers.get("Content-Length") or 0)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = hub.state.tokens.get(token)
        fault = hub._take_fault(self.command, path)
        kind = fault.status if fault else None

        if kind in ("drop", "reset") and (size or self.command == "HEAD"):
            self.rfile.read(size // 2)
            hub.log.append(LoggedRequest(self.command, path, 0, user))
            return self._reset()
        body = self.rfile.read(size)
        if kind == "corrupt":
            body = _corrupt(body)
        if isinstance(kind, int):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            response = Response.json({"error": f"Fault on demand: {kind}"}, kind, headers)
        else:
            request = Request(self.command, target.path, parse_qs(target.query), self.headers, body, token, user)
            response = hub._answer(request)
        if kind == "corrupt" and not size:
            response.body = _corrupt(response.body)
        cut = kind in ("drop", "reset")
        hub.log.append(LoggedRequest(self.command, path, 0 if cut else response.status, user))
        self._send(response, cut_off=cut)
        if kind == "reset":
            self._reset()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _send(self, response: Response, cut_off: bool) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: len(response.body) // 2] if cut_off else response.body)
        self.close_connection = self.close_connection or cut_off

    def _reset(self) -> None:
        # Lingering for 0 seconds makes close() send a reset in place of the orderly end.
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args) -> None:
        """The log of the server object is the log."""


def _corrupt(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :] if body else body
