"""Where a tar ends: how many zeros programs write behind the last member, and how many are a lost tail."""

import os
from pathlib import Path

BLOCK = 512
# A tar ends with two zero blocks, and more up to a whole record. By default, programs write records of at most 20
# blocks. Larger ones are asked for (`tar -b`); others than these, as 40 or 200, cannot be told from a lost tail.
_DEFAULT_RECORD = 20
_LARGE_RECORDS = (63, 126, *(1 << power for power in range(5, 14)))


def is_end(start: int, length: int) -> bool:
    """Whether zeros from `start` to the end, at `length`, are what a program writes behind the last member.

    A broken download of the full size, and a file that a crash has filled up, hold more of them.
    """
    zeros = length - start
    if zeros <= (_DEFAULT_RECORD + 1) * BLOCK:
        return True
    records = [blocks * BLOCK for blocks in _LARGE_RECORDS if start]  # without a member, nothing is lost
    return any(length % record == 0 and zeros < record + 2 * BLOCK for record in records)


def ends_in_zeros(tar_path: str) -> bool:
    """Whether a file ends in more zeros than any program writes, as far as a look at its last megabytes can tell."""
    most = (max(_LARGE_RECORDS) + 2) * BLOCK
    with Path(tar_path).open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - most))
        content = stream.read(most)
    return len(content) == most and not content.strip(b"\0")
