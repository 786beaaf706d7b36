"""A real S3 endpoint on loopback: moto's server over HTTP, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

from featcache.errors import JobError, UsageError

START_SECONDS = 120
# The server takes any keys; clients must have some.
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDTESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret/of+the*tests"}


class MotoServer:
    """Listens on a free port of loopback; its buckets live as long as it does."""

    def __init__(self, port: int = 0) -> None:
        """`port`: where to listen; any free one for 0."""
        if importlib.util.find_spec("moto") is None:
            raise UsageError("a server on loopback needs moto: run `pip install 'moto[server]'`, or name a bucket")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | KEYS,
        )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise JobError("moto's server does not start: see `python -m moto.server`") from None
                time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """SIGKILL: its buckets are gone."""
        self._process.kill()
        self._process.wait()

    def new_bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.request("PUT", f"/{name}")
        return name

    def request(self, method: str, path: str, body: bytes | None = None) -> None:
        """A request without keys, as moto's own controls take it."""
        headers = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{self.endpoint}{path}", data=body, method=method, headers=headers)
        urllib.request.urlopen(asked).close()


def variables(endpoint: str) -> dict[str, str]:
    """AWS's variables for this endpoint and its keys; files with others are out of sight."""
    own = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    return KEYS | own | dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
