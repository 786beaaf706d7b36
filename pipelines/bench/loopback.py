"""A real S3 endpoint on loopback: moto's server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDTESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret/of+the*tests"}


class Server:
    """moto's server; its buckets live as long as it does."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | KEYS,
        )  # fmt: skip
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise RuntimeError("moto's server does not start") from None
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def create(self, bucket: str) -> None:
        """Make an empty bucket."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT")).close()


@contextlib.contextmanager
def served(blocks: Path) -> Iterator[str]:
    """The URL of an empty bucket; meanwhile the environment names its endpoint and keys, and nothing else of AWS.

    Args:
        blocks: the folder for pieces of what is read.
    """
    server = Server()
    before = dict(os.environ)
    try:
        server.create("bench")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(
            KEYS, AWS_ENDPOINT_URL=server.endpoint, AWS_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
            FEATCACHE_BLOCKS=str(blocks),
        )  # fmt: skip
        yield "s3://bench"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()
