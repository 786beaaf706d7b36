"""Keys are in no file, object, output, log, or argument of a program, whatever is done with a cache on S3."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from rich.console import Console

import featcache
from featcache import s3_storage
from featcache.errors import FeatcacheError
from fusion import recipe
from fusion import train as training
from tests.fusion.speech import toy_cache, toy_recipe
from tests.helpers import make_speech, run_cli
from tests.s3 import IMPATIENT, KEYS, Bucket

TOKEN = "session/of+the=tests"
SECRETS = {**KEYS, "AWS_SESSION_TOKEN": TOKEN}


def forms(secret: str) -> set[bytes]:
    """A secret as it is, and as it would be written in a URL or a header."""
    raw = secret.encode()
    return {raw, quote(secret, safe="").encode(), quote(secret).encode(), base64.b64encode(raw)}


def holders(places: dict[str, bytes]) -> list[str]:
    """Names of those that hold a secret in any form."""
    wanted = {form for secret in SECRETS.values() for form in forms(secret)}
    return [name for name, data in places.items() if any(form in data for form in wanted)]


_watched: list[bytes] | None = None


def _audit(event: str, arguments: Any) -> None:
    # What is seen by everybody on the machine: a program's arguments, not its environment.
    if _watched is not None and event == "subprocess.Popen":
        _watched.append(repr(arguments[:3]).encode())


@contextmanager
def programs() -> Iterator[list[bytes]]:
    """The programs that are started meanwhile, with their arguments."""
    global _watched
    sys.addaudithook(_audit)
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


def test_secrets_are_found_in_any_form() -> None:
    secret = KEYS["AWS_SECRET_ACCESS_KEY"]
    places = {"a": b"x" + secret.encode(), "b": quote(secret, safe="").encode(), "c": b"nothing", "d": TOKEN.encode()}
    assert holders(places) == ["a", "b", "d"]


def test_no_secret_is_left_anywhere(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    speech = tmp_path / "speech"
    speech.mkdir()
    manifest = make_speech(speech, 6)
    toy, made, copied = toy_cache(tmp_path / "toy", 20), f"{bucket.url}/made", f"{bucket.url}/toy"
    said: dict[str, bytes] = {}

    def does(status: int, *command: object) -> None:
        done = run_cli(*command)
        assert done.status == status, done.err
        said[" ".join(map(str, command))] = (done.out + done.err).encode()

    def train(cache: str, name: str) -> None:
        text = toy_recipe(Path("CACHE"), 4, "linear").replace("CACHE", cache)
        wanted = recipe.parse(text, ("train.eval_every=2", f"name={name}"))
        console = Console(file=io.StringIO())
        try:
            training.fit(wanted, runs=tmp_path / "runs", console=console)
        except FeatcacheError as error:
            said[f"error of {name}"] = str(error).encode()
        said[name] = console.file.getvalue().encode()  # type: ignore[attr-defined]

    with programs() as started:
        does(0, "extract", manifest, made, "--upstream", "mel:8")
        does(0, "push", toy, copied, "--json")
        does(0, "pull", copied, tmp_path / "part", "--where", "split=dev")
        does(0, "subset", copied, tmp_path / "subset", "--where", "split=dev")
        for command in ("info", "ls", "stats", "status", "verify"):
            does(0, command, copied, "--json")
        does(0, "show", copied, "u0000")
        train(copied, "whole")
        assert (tmp_path / "runs/whole/metrics.json").exists()
        # Errors are where a secret is most likely to slip out.
        does(1, "info", f"{bucket.url}/elsewhere")
        does(1, "push", toy, "s3://no-such-bucket-here/x")
        with bucket.server.only_known_keys():
            for command in ("info", "verify"):
                does(1, command, copied)
            does(1, "pull", copied, tmp_path / "refused")
            train(copied, "refused")
        monkeypatch.setattr(s3_storage, "RETRIES", IMPATIENT)
        for command in ("info", "status"):
            does(1, command, copied, "--endpoint-url", "http://127.0.0.1:9")
        sent = pickle.dumps(featcache.open(copied))
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    objects = {f"s3: {key}": data for key, data in bucket.files().items()}
    for part in ("blocks/", "runs/whole/recipe.toml", "part/segments/", "subset/segments/"):
        assert any(name.startswith(part) for name in files), part
    assert any("/ledger/" in name for name in objects) and any("log/" in name for name in objects)
    assert any(b"s5cmd" in program for program in started) and "error of refused" in said
    others = {"pickle": sent, "Python's log": caplog.text.encode(), "arguments of programs": b"\n".join(started)}
    assert holders(files | objects | said | others) == []
