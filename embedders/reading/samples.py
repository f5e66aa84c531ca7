"""Tar shard -> samples, by webdataset's rules of keys and grouping, with the integrity that webdataset lacks.

On a whole tar the samples equal webdataset's, key for key and byte for byte (a test says so). On a damaged one
webdataset ends early without a word; here every kind of damage is an error with the member and the offset.
Owns keys, grouping and metadata; not the tar itself (`tar`), nor the images in it (`images`).
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from embedders.errors import ShardError
from embedders.output.failed import FailureKind, SampleError
from embedders.reading.remote import is_remote
from embedders.reading.tar import MAX_MEMBER_BYTES, Member, read_members

# webdataset's own rule: the key ends at the first dot of the base name, and keeps the folders.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
# fmt: off
IMAGE_SUFFIXES = {
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif", "ppm", "pgm", "pnm",
}
# fmt: on
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Of a .json or .txt. Parsed JSON takes up to 24 times its size, and a few batches of it are held at a time.
MAX_TEXT_BYTES = 1 << 20
# So that what could be read can also be written: json.dumps raises RecursionError where the stack is deeper.
MAX_JSON_DEPTH = 100
# No file system holds a longer path, and the ledger holds many.
MAX_NAME_LENGTH = 4096
# What a member costs beside its content.
_MEMBER_BYTES = 512


@dataclass(slots=True)
class Sample:
    """The adjacent members of one key.

    Attributes:
        key: The WebDataset key.
        members: Content by suffix (lower case, without the leading dot), in tar order.
        name: Name of the first member, for messages.
        offset: Position of the first member's header in the uncompressed tar, in bytes.
        problem: Kind and message of what makes this sample unusable, if anything does.
    """

    key: str
    name: str
    offset: int
    members: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[FailureKind, str] | None = None


def check_exists(tar_path: str) -> None:
    """See that a shard is there.

    Raises:
        ShardError: It is not, or is no file.
    """
    if not Path(tar_path).is_file():
        mend = "fetch it first, or name it in config.yaml" if is_remote(tar_path) else "check the path"
        raise ShardError(f"{tar_path!r}: no such shard; expected a .tar file; {mend}")


def read_samples(
    tar_path: str, *, accept_damage: bool = False, wants: Callable[[str], bool] = lambda name: True
) -> Iterator[Sample]:
    """Read the samples of a shard, in tar order.

    A sample that cannot be used comes with its `problem` set. So does every member that webdataset would drop
    without a word, as a sample of its own; except folders, hidden files and webdataset's own `__name__` members.

    Args:
        tar_path: Path of a `.tar`, or of one compressed by gzip.
        accept_damage: Whether to read on after damage. Then each damaged place comes as a sample with a problem,
            and so do its neighbours, of which members may be lost.
        wants: Says by a member's name whether its content is to be read; a content not read is `None`.

    Raises:
        ShardError: The file is missing, is no tar, or is damaged; names the member and the offset.
    """
    seen_keys: set[int] = set()
    for sample in _group_members(read_members(tar_path, wants), tar_path, accept_damage):
        # Hashes, not keys: a shard of millions is to cost little memory. A false alarm takes 2^64 luck.
        fingerprint = hash(sample.key)
        if sample.problem is None and fingerprint in seen_keys:
            sample.problem = (
                FailureKind.REPEATED_KEY,
                "this key came earlier in the tar; the members of a sample must be adjacent, and keys unique",
            )
        if sample.members:  # one without is a file whose name gives no key, or a damaged place
            seen_keys.add(fingerprint)
        yield sample


def read_chosen(tar_path: str, keys: Collection[str]) -> Iterator[Sample]:
    """Read the samples of these keys only, problems included, and pass over the content of all the others.

    Raises:
        ShardError: The file is missing or no tar; damage further in only costs the samples concerned.
    """

    def wants(name: str) -> bool:
        match = _KEY.match(name)
        return match is not None and match.group(1) in keys

    return (sample for sample in read_samples(tar_path, accept_damage=True, wants=wants) if sample.key in keys)


def select_image(sample: Sample) -> tuple[str, bytes]:
    """Return the suffix and the encoded bytes of the one image of a sample.

    A plain suffix (`jpg`) goes before one with dots (`mask.png`), as in webdataset.

    Raises:
        SampleError: There is not exactly one.
    """
    images = [suffix for suffix in sample.members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix]
    candidates = plain or images
    if len(candidates) == 1:
        return candidates[0], sample.members[candidates[0]]
    if not candidates:
        names = _name_some(list(sample.members))
        raise SampleError(FailureKind.NO_SINGLE_IMAGE, f"no image among its members ({names})")
    dots = "" if plain else "; a key ends at the first dot of the name, so dots in names merge samples"
    message = f"{len(candidates)} images under one key ({_name_some(candidates)}){dots}"
    raise SampleError(FailureKind.NO_SINGLE_IMAGE, message)


def read_metadata(sample: Sample) -> dict:
    """Gather what a sample says of itself: the fields of its `.json`, `caption` from its `.txt`, `__key__`.

    A member that was not read counts as absent.

    Raises:
        SampleError: The `.json` or `.txt` cannot be read.
    """
    metadata = {}
    for suffix in ("json", "txt"):
        if len(sample.members.get(suffix) or b"") > MAX_TEXT_BYTES:
            size = len(sample.members[suffix])
            message = f"its .{suffix} has {size} bytes; expected at most {MAX_TEXT_BYTES}"
            raise SampleError(FailureKind.BAD_METADATA, message)
    if sample.members.get("json") is not None:
        try:
            # Python reads NaN and Infinity, which are no JSON, and would write them into a column of JSON.
            metadata = json.loads(sample.members["json"], parse_constant=lambda name: None)
        except RecursionError:
            raise SampleError(FailureKind.BAD_METADATA, "its .json is nested too deeply") from None
        except ValueError as error:
            raise SampleError(FailureKind.BAD_METADATA, f"its .json cannot be read: {error}") from error
        if not isinstance(metadata, dict):
            raise SampleError(
                FailureKind.BAD_METADATA, f"its .json holds a {type(metadata).__name__}, expected an object"
            )
        if _is_deep(metadata):
            raise SampleError(FailureKind.BAD_METADATA, "its .json is nested too deeply")
    if sample.members.get("txt") is not None:
        try:
            metadata["caption"] = sample.members["txt"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise SampleError(FailureKind.BAD_METADATA, f"its .txt is not UTF-8: {error}") from error
    metadata["__key__"] = sample.key
    return metadata


def _group_members(members: Iterator[Member], tar_path: str, accept_damage: bool) -> Iterator[Sample]:
    sample, after_damage, held_bytes = None, None, 0
    for member in members:
        if member.damage is not None:
            if not accept_damage:
                after = f", after member {member.name!r}" if member.name else ""
                raise ShardError(
                    f"{tar_path!r}: damaged at byte {member.offset}{after}: {member.damage}; expected a whole tar; "
                    "copy or make it again, or set accept_damaged_shards: true"
                )
            if member.damage.may_hide_members:
                after_damage = (
                    FailureKind.DAMAGED_TAR,
                    f"members of it may be lost in the damage at byte {member.offset}",
                )
                if sample is not None:
                    sample.problem = sample.problem or after_damage
            key = f"(damage at byte {member.offset})"
            yield Sample(
                key, _escape(member.name), member.offset, problem=(FailureKind.DAMAGED_TAR, str(member.damage))
            )
            continue
        match = _KEY.match(member.name)
        if match is None or not _is_text(member.name):
            # No sample can take it: it becomes a sample of its own, so that it is counted and named.
            name = _escape(member.name)
            problem = member.problem or (FailureKind.BAD_NAME, "expected a name in UTF-8 with a suffix, as 0001.jpg")
            yield Sample(name, name, member.offset, problem=problem)
            continue
        key, suffix = match.group(1), match.group(2).lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = Sample(key, member.name, member.offset, problem=after_damage)
            after_damage, held_bytes = None, 0
        held_bytes += _MEMBER_BYTES + len(member.content or b"")
        if held_bytes > MAX_MEMBER_BYTES:
            sample.problem = sample.problem or (
                FailureKind.TOO_LARGE,
                f"more than {MAX_MEMBER_BYTES} bytes under one key",
            )
            continue
        if suffix in sample.members:
            sample.problem = (FailureKind.REPEATED_MEMBER, f"member {member.name!r} is there twice")
        sample.members[suffix] = member.content
        sample.problem = sample.problem or member.problem
    if sample is not None:
        yield sample


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that were not UTF-8 come as lone surrogates
        return False
    return "\0" not in name and len(name) <= MAX_NAME_LENGTH


def _escape(name: str) -> str:
    """Make a name that is no text storable, and short."""
    name = name if len(name) <= MAX_NAME_LENGTH else f"{name[:100]}..."
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _name_some(suffixes: list[str]) -> str:
    return ", ".join(suffixes[:5]) + (", ..." if len(suffixes) > 5 else "")


def _is_deep(metadata: dict) -> bool:
    level = [metadata]
    for _ in range(MAX_JSON_DEPTH):
        nested = [value for value in level if isinstance(value, dict | list)]
        if not nested:
            return False
        level = [inner for value in nested for inner in (value.values() if isinstance(value, dict) else value)]
    return True
