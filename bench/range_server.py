"""A small S3 server for benchmarks: ranged GETs of files in one folder, each answered after a set delay.

python bench/range_server.py FOLDER DELAY_MS -> prints its port; serves until its standard input closes. It speaks just enough HTTP/1.1 for S3
clients (GET and HEAD with keep-alive, Range, no signatures checked), from mapped files in one process, so that its own limit is far above a
loader's need. `GET /stats` tells requests and bytes so far and the most requests that were waiting at once.
"""

import asyncio
import json
import mmap
import sys
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


class Stats:
    """What was served since the start."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.waiting = self.most_waiting = 0


class RangeServer(asyncio.Protocol):
    """One connection; requests on it are answered in order, each `delay` seconds after it came."""

    def __init__(self, folder: Path, delay: float, stats: Stats) -> None:
        self.folder, self.delay, self.stats, self.buffer = folder, delay, stats, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[:end].decode("latin-1"), self.buffer[end + 4 :]
            self.stats.waiting += 1
            self.stats.most_waiting = max(self.stats.most_waiting, self.stats.waiting)
            if self.delay:
                asyncio.get_running_loop().call_later(self.delay, self._answer, head)
            else:
                self._answer(head)

    def _answer(self, head: str) -> None:
        self.stats.waiting -= 1
        if self.transport.is_closing():
            return
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ")
        path = unquote(urlsplit(target).path)
        if path == "/stats":
            return self._send("200 OK", json.dumps(vars(self.stats)).encode(), "GET")
        try:
            data = mapped(self.folder / path.strip("/"))
        except OSError:
            return self._send("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>", method)
        asked = next((line.split("=", 1)[1] for line in lines if line.lower().startswith("range:")), None)
        if asked is None:
            return self._send("200 OK", memoryview(data), method)
        first, last = asked.split("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= stop:
            return self._send("416 Range Not Satisfiable", b"<Error><Code>InvalidRange</Code></Error>", method)
        where = f"Content-Range: bytes {start}-{stop - 1}/{len(data)}\r\n"
        self._send("206 Partial Content", memoryview(data)[start:stop], method, where)

    def _send(self, status: str, body: bytes | memoryview, method: str, more: str = "") -> None:
        head = f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}ETag: "0"\r\nLast-Modified: {DATE}\r\n\r\n'
        self.transport.write(head.encode())
        if method == "GET":
            self.transport.write(body)
            self.stats.requests += 1
            self.stats.bytes += len(body)


@lru_cache(4096)
def mapped(path: Path) -> mmap.mmap:
    """A file as bytes. Raises OSError."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


async def serve(folder: Path, delay: float) -> None:
    """Until standard input closes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(RangeServer, folder, delay, Stats()), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
