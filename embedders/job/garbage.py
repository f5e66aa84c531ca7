"""Python's search for garbage, which is left out while a job imports what it needs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keep_imports() -> Iterator[None]:
    """Leave out the search for garbage while the block imports modules, and later in what it has made.

    torch and timm make 400,000 objects that stay until the job ends. Python would search all of them for unused ones
    again and again: during the imports, from time to time during the job, and at its end. The block must not run a
    user's code: its unused weights would stay too, and libraries that count their objects at the end would complain.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
