"""A web server on this machine for one file, whose every answer is planned."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` under every address. Each request takes the next entry of ``plan``; without one it is served.

    Entries: a status, such as 503; "drop" (half of what is asked, then the connection ends), "stall" (half, then
    nothing for ``delay`` seconds), "late" (the answer after ``delay`` seconds), "whole" (as if Range were unknown),
    "corrupt" (one byte changed), "short" and "long" (a Content-Length of 1000 bytes less or more than there are),
    "unsized" (no Content-Length), "refuse" (nothing at all).
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.plan, self.delay = content, [], 1.0
        self.asked: list[str | None] = []  # the Range of each request
        self.states_md5 = False
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def folder(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some/folder"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content, wanted = self.server.content, self.headers.get("Range")
        self.server.asked.append(wanted)
        step = self.server.plan.pop(0) if self.server.plan else "serve"
        self.close_connection = True
        if step == "refuse":
            return
        if step == "late":
            time.sleep(self.server.delay)
        if isinstance(step, int):
            return self._head(step, {"Content-Length": "0"})
        if step == "corrupt":
            content = content[:500] + bytes([content[500] ^ 255]) + content[501:]
        whole = f"/{len(content)}"
        first = int(re.findall(r"\d+", wanted)[0]) if wanted and step != "whole" else None
        if first is not None and first >= len(content):
            return self._head(416, {"Content-Range": f"bytes *{whole}", "Content-Length": "0"})
        body = content[first or 0 :]
        sent = body[: len(body) // 2] if step in ("drop", "stall") else body
        length = len(body) + {"short": -1000, "long": 1000}.get(str(step), 0)
        headers = {} if step == "unsized" else {"Content-Length": str(length)}
        if first is not None:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}{whole}"
        if self.server.states_md5:
            digest = base64.b64encode(hashlib.md5(self.server.content).digest()).decode()
            headers["Content-MD5" if first is None else "x-ms-blob-content-md5"] = digest
        self._head(200 if first is None else 206, headers)
        self.wfile.write(sent)
        if step == "stall":
            self.wfile.flush()
            time.sleep(self.server.delay)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
