"""A Hub on loopback for the real huggingface_hub client, with faults on demand."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.hub.endpoints import Refusal, Request, answer
from tests.hub.storage import Repo, Storage
from tests.hub.xet import XetStore

__all__ = ["Fault", "Hub", "Repo"]


@dataclass
class Fault:
    """Something that goes wrong with requests whose "METHOD /path" matches `pattern`.

    It happens `times` times, after the first `after` matching requests. `status` is answered instead of the Hub's own
    status, with `headers` and `body`; `drop` closes the connection in the middle of the request body; `delay` waits (in
    seconds) before that.
    """

    pattern: str
    times: int = 1_000_000
    after: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "made to fail"}'
    drop: bool = False
    delay: float = 0.0
    seen: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


class Hub(Storage):
    """Start with `with Hub() as hub:`; its address is `hub.url`.

    Attributes:
        requests: "METHOD /path" of every request, in order.
        received: the body of every request.
        faults: `Fault`s; the first one that strikes is applied.
    """

    def __init__(self, xet: XetStore | None = None) -> None:
        super().__init__(xet)
        self.requests: list[str] = []
        self.received: list[bytes] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fault(self, pattern: str, **kwargs: Any) -> Fault:
        self.faults.append(Fault(pattern, **kwargs))
        return self.faults[-1]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(line)
            fault = next((f for f in self.hub.faults if f.strikes(line)), None)
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.drop:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        request = Request(self.hub, self.headers.get("Authorization", ""), self.path, self._body())
        with self.hub.lock:
            self.hub.received.append(request.body)
        if fault is not None and fault.status:
            self._send(fault.status, fault.body, {"Content-Type": "application/json", **fault.headers})
            return
        try:
            with self.hub.lock:
                status, content, headers = answer(self.command, path, request)
        except Refusal as refusal:
            status, content = refusal.status, json.dumps({"error": str(refusal)}).encode()
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
        self._send(status, content, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
