"""One process trains a run: two that write into one folder would leave the weights of one with the scores of the other.

The kernel's lock on a file in the folder (flock) goes with its process, however that ends, so that nothing is left to
clean up. A file system without such locks is used without.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

from featcache.errors import UsageError
from fusion import checkpoint
from fusion.run import Files


@contextlib.contextmanager
def locked(runs: Iterable[Files]) -> Iterator[None]:
    """Keep other processes from training these runs; what killed ones left half written is removed.

    Raises:
        UsageError: another process is training one of them.
    """
    with contextlib.ExitStack() as held:
        for files in runs:
            try:
                files.path.mkdir(parents=True, exist_ok=True)
                descriptor = _taken(files)
            except BlockingIOError as error:
                raise UsageError(
                    f"run {files.path} is being trained by another process; wait for that or stop it, or use "
                    "--set name=OTHER"
                ) from error
            except OSError:
                continue  # without locks, or not to be written to, which the first file that is written tells
            held.callback(_give_back, files, descriptor)
            checkpoint.remove_half_written(files.path)
        yield


def _taken(files: Files) -> int:
    """The descriptor of the lock file, which is this process's own.

    Raises:
        BlockingIOError: another process has it.
    """
    while True:
        descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it removes the file at the end; a lock on what is no longer there keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(files.lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _give_back(files: Files, descriptor: int) -> None:
    files.lock.unlink(missing_ok=True)
    os.close(descriptor)
