"""Packages from apt: pinned, resumable, and a clear word where there is no apt.

A small package is built here, and a stand-in for apt-get hands it out; dpkg-deb is the real one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from featcache.errors import JobError
from pipelines.demo.fetch import Package, data_root, fetch, share_root

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that the stand-in for apt-get serves; each call is a line in `calls`."""
    monkeypatch.delenv("FEATCACHE_SPEECH_ROOT", raising=False)
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: small-speech\nVersion: 1.0-1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: for a test\n"
    )
    (tree / "usr" / "share" / "small").mkdir(parents=True)
    (tree / "usr" / "share" / "small" / "speech.txt").write_text("hello\n")
    served = tmp_path / "served.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, served], check=True, capture_output=True)
    stand_in = tmp_path / "bin" / "apt-get"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        f"for word; do [ $word = update ] && exit 0; done\n"
        f'[ -e {tmp_path}/no-lists ] && case "$*" in *Dir::State::lists*) ;; *) '
        'echo "E: Unable to locate package small-speech" >&2; exit 100;; esac\n'
        f"cp {served} small-speech_1.0-1_all.deb\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    return Package("small-speech", "1.0-1", served.stat().st_size, digest, "CC0-1.0")


@needs_dpkg
def test_fetched_once_and_announced(package: Package, tmp_path: Path, console: Console) -> None:
    share = fetch([package], console=console, root=tmp_path / "cache")
    assert (share / "small" / "speech.txt").read_text() == "hello\n"
    assert "small-speech 1.0-1" in said(console)
    assert "licence CC0-1.0  SHA-256 as pinned" in said(console)
    calls = (tmp_path / "calls").read_text()
    assert fetch([package], console=console, root=tmp_path / "cache") == share
    assert (tmp_path / "calls").read_text() == calls


@needs_dpkg
def test_lists_of_our_own_where_the_machine_has_none(package: Package, tmp_path: Path, console: Console) -> None:
    (tmp_path / "no-lists").touch()
    share = fetch([package], console=console, root=tmp_path / "cache")
    assert (share / "small" / "speech.txt").is_file()
    assert any("update" in line.split() for line in (tmp_path / "calls").read_text().splitlines())


@needs_dpkg
def test_damaged_archive_is_fetched_again(package: Package, tmp_path: Path, console: Console) -> None:
    archives = tmp_path / "cache" / "debian" / "archives"
    archives.mkdir(parents=True)
    (archives / package.filename).write_bytes(b"half a file")
    share = fetch([package], console=console, root=tmp_path / "cache")
    assert (share / "small" / "speech.txt").is_file()
    assert "as pinned" in said(console)
    assert "warning" not in said(console)


@needs_dpkg
def test_interrupted_unpacking_is_done_again(package: Package, tmp_path: Path, console: Console) -> None:
    share = fetch([package], console=console, root=tmp_path / "cache")
    (share / "small" / "speech.txt").unlink()
    (tmp_path / "cache" / "debian" / "root" / ".unpacked" / package.name).unlink()
    fetch([package], console=console, root=tmp_path / "cache")
    assert (share / "small" / "speech.txt").is_file()


@needs_dpkg
def test_another_version_is_taken_with_a_warning(package: Package, tmp_path: Path, console: Console) -> None:
    other = dataclasses.replace(package, sha256="0" * 64)
    share = fetch([other], console=console, root=tmp_path / "cache")
    assert (share / "small" / "speech.txt").is_file()
    assert "not as pinned" in said(console)
    assert "warning: small-speech_1.0-1_all.deb is not the file" in said(console)


def test_without_apt_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.delenv("FEATCACHE_SPEECH_ROOT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package("small-speech", "1.0-1", 1, "0" * 64, "CC0-1.0")
    with pytest.raises(JobError) as error:
        fetch([package], console=console, root=tmp_path / "cache")
    message = str(error.value)
    assert "no apt-get and no dpkg-deb" in message
    assert "small-speech_1.0-1_all.deb" in message
    assert "FEATCACHE_SPEECH_ROOT" in message
    assert "\n" not in message


@needs_dpkg
def test_a_full_disk_is_noticed_first(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(JobError, match="0 MB free"):
        fetch([package], console=console, root=tmp_path / "cache")
    assert not (tmp_path / "calls").exists()


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATCACHE_SPEECH_ROOT", raising=False)
    monkeypatch.delenv("FEATCACHE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "featcache"
    assert share_root() == tmp_path / "featcache" / "debian" / "root" / "usr" / "share"
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "elsewhere"))
    assert share_root() == tmp_path / "elsewhere" / "debian" / "root" / "usr" / "share"
    monkeypatch.setenv("FEATCACHE_SPEECH_ROOT", str(tmp_path / "speech"))
    assert share_root() == tmp_path / "speech"
    assert fetch([], root=None) == tmp_path / "speech"
