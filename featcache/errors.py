"""Every error of this project, as one tree.

    FeatcacheError                exit status 1
    ├── UsageError                exit status 2: the command, recipe or manifest is wrong
    │   ├── ManifestError         a line of a manifest, its field and the fix
    │   └── UpstreamError         a model that cannot be loaded as asked
    ├── AudioError                a recording that cannot be used; the row is quarantined with its `reason`
    ├── JobError                  a job that could not go on (full disk, failed process)
    │   └── Interrupted           exit status 130: stopped by the user, what is done is safe
    └── CacheError                something is the matter with a cache
        ├── CorruptCacheError     a missing, truncated or altered file; names it and the repair
        ├── MismatchError         the cache was made by another model, codec or plan
        ├── NotPulledError        a row that a partial copy of a cache does not hold
        └── UtteranceNotFound     no such id in the cache

A message is one line: what is wrong, why, and what to do next. Command-line programs print it without
a traceback and leave with `exit_code`.
"""

from __future__ import annotations


class FeatcacheError(Exception):
    """Base of all errors that a user can act upon."""

    exit_code = 1


class UsageError(FeatcacheError):
    """The request itself is wrong: an option, a recipe, a path."""

    exit_code = 2


class ManifestError(UsageError):
    """A manifest that cannot be used as it stands."""


class UpstreamError(UsageError):
    """A foundation model that cannot be loaded as asked."""


class AudioError(FeatcacheError):
    """A recording that cannot be used. Its row is quarantined; the job goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JobError(FeatcacheError):
    """A job that cannot go on; finished shards are safe."""


class Interrupted(JobError):
    """Stopped by a signal; what is done is safe, and the same command goes on."""

    exit_code = 130


class CacheError(FeatcacheError):
    """A cache that cannot be used as asked."""


class CorruptCacheError(CacheError):
    """A file of the cache is missing, truncated or altered."""


class MismatchError(CacheError):
    """The cache and the request do not belong together."""


class NotPulledError(CacheError):
    """The row is in a shard that this partial copy does without."""


class UtteranceNotFound(CacheError):
    """No utterance of this id is in the cache."""
