"""A real HTTP server on this machine that serves a folder, and fails, stalls, cuts short and corrupts when asked to."""

import contextlib
import os
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("error", "busy", "reset", "reset in the middle", "stall", "stall in the middle", "truncate", "corrupt")
Choose = Callable[[str, int], str]
"""(path, how many requests for it came before) -> one of FAULTS, "absent", "forbidden", "trickle", "lie" (another part than it
says), "all" (more than it says), "moved" (to /signedN/PATH, N counting such answers), "" for an honest answer."""


class FaultyServer(ThreadingHTTPServer):
    """`requests`: how often each path was asked for; `ranges`: whether it can begin in the middle of a file."""

    daemon_threads = True

    def __init__(self, folder: Path, choose: Choose, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.choose, self.ranges = folder, choose, ranges
        self.requests: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.logins: set[str | None] = set()
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        with self.server.lock:
            fault = self.server.choose(path, self.server.requests[path])
            self.server.requests[path] += 1
            self.server.logins.add(self.headers.get("Authorization"))
        file = self.server.folder / re.sub(r"^signed\d+/", "", path)
        status = {"error": 500, "busy": 503, "absent": 404, "forbidden": 403}.get(fault, 0 if file.is_file() else 404)
        if status:
            self.send_error(status)
        elif fault == "moved":
            self.send_response(302)
            self.send_header("Location", f"/signed{self.server.requests[path]}/{path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "reset":
            self._reset()
        elif fault == "stall":
            self.server.closing.wait(60)
        else:
            self._answer(file.read_bytes(), fault, path)

    def _answer(self, data: bytes, fault: str, path: str) -> None:
        asked = self.headers.get("Range") if self.server.ranges else None
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(data)) + 1, len(data))
        if begin >= len(data) > 0:
            self.send_error(416)
            return
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = {"lie": data[: end - begin], "all": data}.get(fault, data[begin:end])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if "middle" in fault or fault == "truncate":
            body = body[: len(body) // 2]
        with self.server.lock:
            self.server.bodies[path] += len(body)
        if fault == "trickle":
            self._trickle(body)
        with contextlib.suppress(ConnectionError):  # a client may have seen enough
            self.wfile.write(body)
            self.wfile.flush()
        if fault == "reset in the middle":
            self._reset()
        elif fault == "stall in the middle":
            self.server.closing.wait(60)

    def _trickle(self, data: bytes) -> None:
        """A byte now and then, which no time-out of a socket sees as a stall."""
        for number in range(len(data)):
            self.wfile.write(data[number : number + 1])
            self.wfile.flush()
            if self.server.closing.wait(0.02):
                return

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def honest(path: str, before: int) -> str:
    return ""


def now_and_then(seed: int, share: float = 0.4, most: int = 4) -> Choose:
    """Faults for a `share` of the requests, never more than `most` in a row for one path; nothing tells a corrupt index."""
    draws, in_a_row = random.Random(seed), Counter[str]()

    def choose(path: str, before: int) -> str:
        faults = FAULTS if path.endswith(".tar") else FAULTS[:-1]
        fault = draws.choice(faults) if draws.random() < share and in_a_row[path] < most else ""
        in_a_row[path] = in_a_row[path] + 1 if fault else 0
        return fault

    return choose


@contextmanager
def serving(folder: Path, choose: Choose = honest, *, ranges: bool = True) -> Iterator[FaultyServer]:
    os.environ["NO_PROXY"] = "127.0.0.1"  # whatever proxy this machine has, it is not for this server
    server = FaultyServer(folder, choose, ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
