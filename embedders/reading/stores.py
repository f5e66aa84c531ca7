"""The servers of shards with an address: S3, Google Cloud Storage, and the web. Only this module talks to them.

obstore is imported when a server is asked, because most runs ask none; `credentials` opens its stores.
"""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from embedders.errors import ConfigError, ShardError, make_one_line
from embedders.reading.credentials import open_store
from embedders.reading.remote import LISTED, Version, is_remote, require_address, split_address

# Requests at a time: at 0.1 s each, 10,000 shards take 16 s.
REQUESTS = 64
# A folder of a bucket with fewer shards is not listed: it may hold a million other files.
MIN_TO_LIST = 100
RETRIES = 5
# If the connection breaks, the part of a chunk that has come is lost.
MIN_CHUNK_BYTES = 1 << 16
_EPOCH = datetime.fromtimestamp(0, UTC)


class RangeError(Exception):
    """The server sends a file only as a whole."""


def find_versions(paths: Iterable[str]) -> dict[str, Version]:
    """Ask servers about shards, many at once.

    Args:
        paths: The shards; those without an address are skipped.

    Returns:
        The version of each shard with an address.

    Raises:
        ConfigError: An address cannot be used.
        ShardError: A shard is not there or cannot be read, or a server does not answer.
    """
    addresses = list(dict.fromkeys(filter(is_remote, paths)))
    for address in addresses:
        require_address(address)
        _open(address, RETRIES)  # once for each server, before many threads do
    found = _list_versions(addresses)
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="ask") as pool:
        try:
            asked = [address for address in addresses if address not in found]
            answers = dict(zip(asked, pool.map(_ask, asked), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    if wrong := {address: answer for address, answer in answers.items() if isinstance(answer, str)}:
        some = ", ".join(f"{address!r} ({why})" for address, why in list(wrong.items())[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ShardError(
            f"shards: {len(wrong)} of {len(addresses)} addresses cannot be read: {some}{more}; expected shards that "
            "are there and that you may read; check the addresses and the credentials"
        )
    found |= {address: answer for address, answer in answers.items() if isinstance(answer, Version)}
    return {address: found[address] for address in addresses}


def find_matches(pattern: str) -> list[str]:
    """Return the addresses in a bucket that a pattern matches, sorted; `*`, `?`, `[]` and `**` are as in paths.

    Raises:
        ConfigError: The pattern cannot be used.
        ShardError: The server does not answer, or does not allow to list.
    """
    require_address(pattern.replace("/./", "/"))
    scheme, bucket, path = split_address(pattern)
    if scheme not in LISTED or _is_pattern(bucket):
        raise ConfigError(
            f"shards: {pattern!r}: only folders of S3 and of Google Cloud Storage can be listed; expected an address "
            "without * and ?; use braces such as {00000..00099}.tar, or list the addresses in a .txt file"
        )
    parts = path.split("/")
    mark = parts.index(".") if "." in parts else None  # where the names of the shards begin
    if mark is not None:
        if "**" in parts[:mark]:
            raise ConfigError(f"shards: {pattern!r}: expected ** only after /./")
        del parts[mark]
    depth = next(number for number, part in enumerate(parts) if _is_pattern(part))
    found = []
    for key in _list_keys(f"{scheme}://{bucket}", "/".join(parts[:depth]), is_deep=depth < len(parts) - 1):
        names = key.split("/")
        if _matches(names, parts):
            if mark is not None:
                names.insert(mark, ".")
            found.append(f"{scheme}://{bucket}/{'/'.join(names)}")
    return sorted(found)


def open_stream(address: str, start: int) -> tuple[Version, Iterator[memoryview]]:
    """Open a file on a server.

    Args:
        address: The file.
        start: The first byte to read.

    Returns:
        The version of the file as a whole, and its content from `start` on.

    Raises:
        FileNotFoundError: It is not there.
        RangeError: The server cannot begin at `start`.
        ShardError: It may not be read.
        OSError: The server does not answer, or the connection breaks, also while the content is read.
    """
    import obstore
    from obstore import exceptions

    store, path = _open(address, retries=0)
    try:
        result = obstore.get(store, path, options={"range": {"offset": start}} if start else {})
    except exceptions.NotSupportedError as error:
        raise RangeError from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise ShardError(f"{address!r}: {_describe(error)}; expected a shard that you may read") from error
    except exceptions.BaseError as error:
        raise ConnectionError(_describe(error)) from error
    return _read_version(result.meta), _read_chunks(result)


def _read_chunks(result: Any) -> Iterator[memoryview]:
    from obstore import exceptions

    try:
        for chunk in result.stream(min_chunk_size=MIN_CHUNK_BYTES):
            yield memoryview(chunk)
    except exceptions.BaseError as error:
        raise ConnectionError(_describe(error)) from error


def _ask(address: str) -> Version | str:
    """Return the version of a file, or why it cannot be read."""
    import obstore
    from obstore import exceptions

    store, path = _open(address, RETRIES)
    try:
        return _read_version(obstore.head(store, path))
    except FileNotFoundError:
        return "not there"
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        return "access denied"
    except exceptions.BaseError as error:
        raise ShardError(f"{address!r}: {_describe(error)}; expected a server that answers; run again") from error


def _list_versions(addresses: Iterable[str]) -> dict[str, Version]:
    """Return the versions of shards in folders with many of them; what is not found must be asked for."""
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for address in addresses:
        if address.startswith(tuple(f"{scheme}://" for scheme in LISTED)):
            by_folder[address.rpartition("/")[0]][split_address(address)[2]] = address
    found = {}
    for keys in by_folder.values():
        if len(keys) >= MIN_TO_LIST:
            try:
                for key, version in _list_range(next(iter(keys.values())), min(keys), max(keys)):
                    if key in keys:
                        found[keys[key]] = version
            except ShardError:  # a bucket may allow to read and not to list
                continue
    return found


def _list_range(address: str, first: str, last: str) -> Iterator[tuple[str, Version]]:
    """Yield key and version of the files in the folder of an address and below, from the first key to the last."""
    import obstore

    store, path = _open(address, RETRIES)
    pages = obstore.list(store, path.rpartition("/")[0] or None, offset=first[:-1] or None, chunk_size=1000)
    for page in _name_errors(pages, address):
        yield from ((meta["path"], _read_version(meta)) for meta in page)
        if page and page[-1]["path"] > last:
            return


def _list_keys(root: str, folder: str, is_deep: bool) -> Iterator[str]:
    """Yield the keys in a folder of a bucket and, if asked, in the folders below."""
    import obstore

    store, _ = _open(f"{root}/", RETRIES)
    if is_deep:
        pages: Iterable = obstore.list(store, folder or None, chunk_size=1000)
    else:
        pages = (obstore.list_with_delimiter(store, folder or None)["objects"] for _ in range(1))
    for page in _name_errors(pages, f"{root}/{folder}"):
        yield from (meta["path"] for meta in page)


def _name_errors(pages: Iterable, address: str) -> Iterator[Any]:
    from obstore import exceptions

    try:
        yield from pages
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise ShardError(
            f"{address!r}: {_describe(error)}; expected a folder that you may list; check the address and the "
            "credentials"
        ) from error


def _open(address: str, retries: int) -> tuple[Any, str]:
    """Return the store of an address, and the path in it."""
    scheme, host, path = split_address(address)
    # A path of the web is percent-encoded, and obstore does so itself.
    return open_store(scheme, host, retries), path if scheme in LISTED else unquote(path)


def _read_version(meta: Any) -> Version:
    modified = meta["last_modified"]
    mtime_ns = None if modified == _EPOCH else int(modified.timestamp() * 1000) * 10**6
    return Version(meta["size"], mtime_ns, (meta["e_tag"] or "").replace('"', "") or None)


def _describe(error: Exception) -> str:
    """Return the message of an error of obstore as one line with the cause, without what may be secret."""
    text, _, source = str(error).partition("\n\nDebug source")
    text = re.sub(r"\?\S+", "?...", make_one_line(text.partition("<?xml")[0]))
    text = re.sub(r"^Generic \w+ error: |, max_retries: \d+|, retry_timeout: \w+", "", text)
    cause = re.search(r'(?:message|error): "([^"\n]+)"|InvalidCertificate\(\s*(\w+)', source)
    why = f" ({cause[1] or f'bad certificate, {cause[2]}'})" if cause else ""
    return f"{text[:400].strip(' :')}{why}"


def _is_pattern(part: str) -> bool:
    return any(character in part for character in "*?[")


def _matches(names: list[str], parts: list[str]) -> bool:
    """Return whether the parts of a key match those of a pattern, as in paths: a * matches no dot at the start."""
    if not names or not parts:
        return not names and not parts
    name, part = names[0], parts[0]
    is_hidden = name.startswith(".") and not part.startswith(".")
    if part == "**":
        return _matches(names, parts[1:]) or (not is_hidden and _matches(names[1:], parts))
    return not is_hidden and fnmatch.fnmatchcase(name, part) and _matches(names[1:], parts[1:])
