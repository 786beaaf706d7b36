"""A real S3 endpoint on loopback (moto's server, over HTTP), and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import obstore
from obstore.store import S3Store

from pipelines.bench.s3_server import KEYS, MotoServer

__all__ = ["IMPATIENT", "KEYS", "Bucket", "Server", "Wire"]

# In place of `featcache.s3_storage.RETRIES`, where a test has taken the server away for good.
IMPATIENT = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}


class Server(MotoServer):
    """moto's server, and what tests ask of it beyond S3."""

    def make_bucket(self, name: str = "") -> Bucket:
        if name:
            self.request("PUT", f"/{name}")
        return Bucket(self, name or self.new_bucket())

    @contextlib.contextmanager
    def only_known_keys(self) -> Iterator[None]:
        """Meanwhile every request must be signed with keys that the server knows; it knows none."""
        self._check_from(0)
        try:
            yield
        finally:
            self._check_from(1 << 40)

    def _check_from(self, count: int) -> None:
        self.request("POST", "/moto-api/reset-auth", str(count).encode())


class Bucket:
    """A bucket, seen by another client than the one under test."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self._store = S3Store(
            name, endpoint=server.endpoint, region="us-east-1", client_options={"allow_http": True},
            access_key_id=KEYS["AWS_ACCESS_KEY_ID"], secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def files(self, prefix: str = "") -> dict[str, bytes]:
        """All objects below a prefix, by key relative to it."""
        listed = [row["path"] for rows in obstore.list(self._store, prefix or None) for row in rows]
        return {p.removeprefix(f"{prefix}/"): bytes(obstore.get(self._store, p).bytes()) for p in listed}

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._store, key, data)

    def delete(self, key: str) -> None:
        obstore.delete(self._store, key)


class Wire:
    """A TCP port that forwards to a server until it is cut: to a client, the server is then gone."""

    def __init__(self, port: int, cut_after: int | None = None, stall_after: int | None = None) -> None:
        """
        Args:
            cut_after: bytes from client to server after which the wire cuts itself.
            stall_after: bytes in both directions after which it passes on nothing more, until it is cut.
        """
        self._to = port
        self._left = cut_after
        self._until_stall = stall_after
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            sockets, self._open = [self._listener, *self._open], []
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                if self.is_cut:
                    client.close()
                    server.close()
                    return
                self._open += [client, server]
            for source, sink, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=(source, sink, counted), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 14):
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        return self.cut()
                if self._until_stall is not None:
                    self._until_stall -= len(data)
                    if self._until_stall <= 0:
                        return self.stalled.set()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
