"""Reader of the samples of a tar shard, by webdataset's rules of keys and grouping, but with checks for damage.

For an intact tar, the samples equal webdataset's, key for key and byte for byte (a test compares them). In a damaged
one, webdataset stops early without a message; here every kind of damage is an error with the member and the offset.
Owns keys and grouping; not the tar itself (`tar`), nor what the members hold (`images`, `metadata`).
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from embedders.errors import ConfigError, ShardError
from embedders.output.failed import FailureKind, SampleError
from embedders.reading.magic import describe_start
from embedders.reading.remote import is_remote, require_address
from embedders.reading.tar import MAX_MEMBER_BYTES, Member, read_members

# fmt: off
IMAGE_SUFFIXES = {
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif", "ppm", "pgm", "pnm",
}
# fmt: on
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
# No file system has longer paths, and the ledger must hold many of them.
MAX_NAME_LENGTH = 4096
# Memory of a member in addition to its content.
_MEMBER_BYTES = 512


@dataclass(slots=True)
class Sample:
    """The adjacent members of one key.

    Attributes:
        key: The WebDataset key.
        members: Content by suffix (lower case, without the leading dot), in tar order; `None` if not wanted.
        name: Name of the first member, for messages.
        offset: Position of the first member's header in the uncompressed tar, in bytes.
        problem: Why this sample cannot be used, as kind and message; `None` if it can.
    """

    key: str
    name: str
    offset: int
    members: dict[str, bytes | None] = field(default_factory=dict)
    problem: tuple[FailureKind, str] | None = None

    @property
    def account(self) -> str:
        """The name of its account in the ledger: its key, plus the offset if that key came earlier in the tar."""
        is_later = self.problem is not None and self.problem[0] is FailureKind.REPEATED_KEY
        return f"{self.key} (again at byte {self.offset})" if is_later else self.key


def check_exists(tar_path: str) -> None:
    """Check that a shard exists; its server is not asked if it has an address.

    Raises:
        ConfigError: Its address cannot be used.
        ShardError: It does not exist, or is not a file.
    """
    if is_remote(tar_path):
        require_address(tar_path)
    elif not os.path.isfile(tar_path):  # pathlib raises an error for a name that is too long
        raise ShardError(f"{tar_path!r}: no such shard; expected a .tar file; check the path")


def read_samples(
    tar_path: str, *, accept_damage: bool = False, wants: Callable[[str], bool] = lambda name: True
) -> Iterator[Sample]:
    """Read the samples of a shard, in tar order.

    A sample that cannot be used has its `problem` set. A member that webdataset would silently drop becomes a sample
    of its own with a problem, except folders, hidden files and webdataset's own `__name__` members.

    Args:
        tar_path: Path of a `.tar`, plain or compressed by gzip.
        accept_damage: Whether to continue after damage. Each damaged place is then yielded as a sample with a
            problem, and so are the samples before and after it, whose members may be lost.
        wants: Returns for a member's name whether to read its content; otherwise the content is `None`.

    Raises:
        ShardError: The file is missing, is not a tar, or is damaged; the message names the member and the offset.
    """
    seen_keys: set[int] = set()
    for sample in _group_members(read_members(tar_path, wants), tar_path, accept_damage):
        # Hashes take less memory than the keys of millions. Two keys have the same hash with a chance of 1 in 2^64.
        fingerprint = hash(sample.key)
        if sample.members:  # a sample without members is a file whose name has no key, or a damaged place
            if fingerprint in seen_keys:
                names = _name_some([f".{suffix}" for suffix in sample.members])
                sample.problem = (
                    FailureKind.REPEATED_KEY,
                    f"members {names} of key {sample.key!r}, which came earlier in the tar, are left out; expected "
                    "the members of a key next to each other, and no key twice; tar --sort=name puts them together",
                )
            seen_keys.add(fingerprint)
        yield sample


def read_chosen(tar_path: str, accounts: Collection[str]) -> Iterator[Sample]:
    """Read the samples whose accounts have these names, including those with a problem; skip the content of others.

    Raises:
        ShardError: The file is missing or is not a tar. Later damage only affects the samples at that place.
    """
    keys = {account.partition(" (again at byte ")[0] for account in accounts}

    def wants(name: str) -> bool:
        return name[: _find_dot(name)] in keys

    samples = read_samples(tar_path, accept_damage=True, wants=wants)
    return (sample for sample in samples if sample.account in accounts)


def check_suffix(image_suffix: str) -> str:
    """Check the suffix of the images, and return it in lower case, as `select_image` needs it.

    Raises:
        ConfigError: It begins with a dot.
    """
    if image_suffix.startswith("."):
        raise ConfigError(f"image_suffix: {image_suffix!r}; expected a suffix without the dot, such as jpg")
    return image_suffix.lower()


def select_image(sample: Sample, image_suffix: str = "") -> tuple[str, bytes]:
    """Return the suffix and the encoded bytes of the one image of a sample.

    A plain suffix (`jpg`) is preferred to one with dots (`mask.png`), as in webdataset.

    Args:
        sample: The sample.
        image_suffix: The suffix of the image to return; needed if there are several images, or if the suffix is not
            in `IMAGE_SUFFIXES`.

    Raises:
        SampleError: There is not exactly one.
    """
    if image_suffix:
        if image_suffix in sample.members:
            return image_suffix, sample.members[image_suffix] or b""
        names = _name_some(list(sample.members))
        message = f"no .{image_suffix} (image_suffix) among its members ({names})"
        raise SampleError(FailureKind.NO_SINGLE_IMAGE, message)
    images = [suffix for suffix in sample.members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix]
    candidates = plain or images
    if len(candidates) == 1:
        return candidates[0], sample.members[candidates[0]] or b""
    if not candidates:
        names = _name_some(list(sample.members))
        raise SampleError(FailureKind.NO_SINGLE_IMAGE, f"no image among its members ({names})")
    dots = "" if plain else "; a key ends at the first dot of the name, so dots in names merge samples"
    message = f"{len(candidates)} images under one key ({_name_some(candidates)}); image_suffix chooses one{dots}"
    raise SampleError(FailureKind.NO_SINGLE_IMAGE, message)


def _group_members(members: Iterator[Member], tar_path: str, accept_damage: bool) -> Iterator[Sample]:
    sample, after_damage, held_bytes = None, None, 0
    for member in members:
        if member.damage is not None:
            reason = str(member.damage)
            if member.offset == 0:
                reason = f"{reason}; the file {describe_start(tar_path)}"
            if not accept_damage:
                if member.offset == 0:  # the file may not be a tar at all
                    raise ShardError(
                        f"{tar_path!r}: damaged at byte 0: {reason}; expected a tar, plain or compressed by gzip; "
                        "fetch the file itself, or pack its images as a tar"
                    )
                after = f", after member {member.name!r}" if member.name else ""
                raise ShardError(
                    f"{tar_path!r}: damaged at byte {member.offset}{after}: {reason}; expected a whole tar; "
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
            yield Sample(key, _escape(member.name), member.offset, problem=(FailureKind.DAMAGED_TAR, reason))
            continue
        dot = _find_dot(member.name)
        if dot < 0 or not _is_text(member.name):
            # The member belongs to no sample. It becomes a sample of its own, so that it is counted and named.
            name = _escape(member.name)
            problem = member.problem or (FailureKind.BAD_NAME, "expected a name in UTF-8 with a suffix, as 0001.jpg")
            yield Sample(name, name, member.offset, problem=problem)
            continue
        key, suffix = member.name[:dot], member.name[dot + 1 :].lower()
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


def _find_dot(name: str) -> int:
    """Return where the key ends, by webdataset's rule: at the first dot of the base name; -1 if there is none."""
    return name.find(".", name.rfind("/") + 1)


def _is_text(name: str) -> bool:
    if name.isascii():
        return "\0" not in name and len(name) <= MAX_NAME_LENGTH
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that were not UTF-8 were decoded to lone surrogates
        return False
    return "\0" not in name and len(name) <= MAX_NAME_LENGTH


def _escape(name: str) -> str:
    """Return a short name that can be stored as UTF-8."""
    name = name if len(name) <= MAX_NAME_LENGTH else f"{name[:100]}..."
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _name_some(suffixes: list[str]) -> str:
    return ", ".join(suffixes[:5]) + (", ..." if len(suffixes) > 5 else "")
