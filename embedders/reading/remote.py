"""Shards with an address, such as `s3://bucket/00000.tar`: what an address is, and what a server says of its file.

Owns the form of addresses. `stores` asks servers, `copies` fetches. Imports nothing heavy and asks no server.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from embedders.errors import ConfigError

SCHEMES = ("s3", "gs", "http", "https")
# Those that can list their files, so that patterns with * work.
LISTED = ("s3", "gs")
_NAME_AND_PASSWORD = re.compile(r"//[^/]*@")


@dataclass(frozen=True)
class Version:
    """What a server says of a file; it changes when the file does.

    Attributes:
        bytes: The size.
        mtime_ns: Time of change; `None` if the server does not say.
        etag: The entity tag without quotation marks; `None` if the server does not say.
    """

    bytes: int | None
    mtime_ns: int | None = None
    etag: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether files of this version have the same bytes; a size or a weak entity tag does not promise that."""
        return self.mtime_ns is not None or (self.etag is not None and not self.etag.startswith("W/"))

    def is_same(self, other: "Version") -> bool:
        """Return whether two versions are the same: by entity tag, else by size and time, as far as known."""
        if self.etag and other.etag:
            return self.etag == other.etag
        # In seconds, because servers round the time in one kind of answer and not in another.
        times = [version.mtime_ns // 10**9 for version in (self, other) if version.mtime_ns is not None]
        return self.bytes == other.bytes and len(set(times)) <= 1


def is_remote(path: str) -> bool:
    """Return whether a shard has an address and must be fetched."""
    return "://" in path


def split_address(address: str) -> tuple[str, str, str]:
    """Return the scheme of an address, its bucket or host, and the path there."""
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    return scheme, host, path


def hide_secrets(address: str) -> str:
    """Return an address without the name and the password, and without what follows a `?`."""
    return _NAME_AND_PASSWORD.sub("//...@", address).partition("?")[0]


def require_address(address: str) -> None:
    """Check that an address can be used, without asking its server.

    Raises:
        ConfigError: It cannot, or the library that fetches shards is not installed.
    """
    scheme, host, path = split_address(address)
    where = f"shards: {hide_secrets(address)!r}"
    if scheme not in SCHEMES:
        raise ConfigError(f"{where}: expected an address that begins with {', '.join(SCHEMES)}")
    if "@" in host:
        raise ConfigError(
            f"{where}: expected an address without name and password, which would be in logs and results; write them "
            "to ~/.netrc"
        )
    if scheme not in LISTED and "?" in path:
        raise ConfigError(
            f"{where}: expected an address without ?, because what follows may be a key, which logs and results "
            "would show; use an address such as s3://bucket/00000.tar, or write name and password to ~/.netrc"
        )
    # Other names of buckets make obstore panic.
    is_bad = scheme in LISTED and not (host.isascii() and host.isprintable() and " " not in host)
    if not host or is_bad or {"", ".", ".."} & set(path.split("/")):
        raise ConfigError(
            f"{where}: expected an address such as s3://bucket/00000.tar, without // and .. in its path"
        )
    if not _is_installed("obstore") or (scheme == "s3" and not _is_installed("boto3")):
        raise ConfigError(
            f"{where}: a package that fetches shards is not installed here; `pip install obstore boto3`, or install "
            "Tarquet as 'tarquet[storage]'"
        )


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None
