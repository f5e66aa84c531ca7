"""The end of a tar: how many zeros programs write after the last member, and how many mean that data is lost."""

import os
from pathlib import Path

BLOCK = 512
# A tar ends with two zero blocks, and more to fill a record. By default, programs write records of at most 20 blocks.
# Users can ask for larger ones (`tar -b`). Sizes that are not listed here, such as 40 or 200, look like lost data.
_DEFAULT_RECORD = 20
_LARGE_RECORDS = (63, 126, *(1 << power for power in range(5, 14)))


def is_end(start: int, length: int) -> bool:
    """Return whether the zeros from `start` to the end, at `length`, may come from a program that wrote the tar.

    A broken download of full size, or a file that a crash has filled with zeros, ends in more of them.
    """
    zeros = length - start
    if zeros <= (_DEFAULT_RECORD + 1) * BLOCK:
        return True
    records = [blocks * BLOCK for blocks in _LARGE_RECORDS if start]  # without a member, nothing is lost
    return any(length % record == 0 and zeros < record + 2 * BLOCK for record in records)


def ends_in_zeros(tar_path: str) -> bool:
    """Return whether a file ends in more zeros than any program writes, judged by its last megabytes."""
    most = (max(_LARGE_RECORDS) + 2) * BLOCK
    with Path(tar_path).open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - most))
        content = stream.read(most)
    return len(content) == most and not content.strip(b"\0")
