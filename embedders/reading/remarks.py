"""Remarks of decoders on images that they decode nevertheless, collected for each sample.

Decoders run on several threads and do not know the sample. They call `remark`, and Pillow issues Python warnings. The
loader, which knows the sample, collects both on the same thread.
"""

import logging
import threading
import warnings
from typing import TextIO

from PIL.Image import DecompressionBombWarning

log = logging.getLogger(__name__)

_thread = threading.local()
_show_warning = warnings.showwarning


def collect_remarks() -> list[tuple[str, str]]:
    """Return a list that gets all further remarks on this thread, as kind and text."""
    if warnings.showwarning is not _show:
        _take_over_warnings()
    remarks: list[tuple[str, str]] = []
    _thread.remarks = remarks
    return remarks


def remark(kind: str, text: str) -> None:
    """Add a remark on the image that this thread decodes, unless the same was added before.

    Args:
        kind: A short word by which remarks are counted, such as `patched`.
        text: What was found, in one line for people to read.
    """
    remarks = getattr(_thread, "remarks", None)
    if remarks is None:  # a user's own loader
        log.warning("%s: %s", kind, text)
    elif (kind, text) not in remarks:
        remarks.append((kind, text))


def _take_over_warnings() -> None:
    global _show_warning
    _show_warning = warnings.showwarning
    warnings.showwarning = _show
    # Otherwise Python shows only the first of each kind. Appended, so that a user's own filters come first.
    warnings.filterwarnings("always", module=r"PIL\.", append=True)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if getattr(_thread, "remarks", None) is None or "PIL" not in filename:
        _show_warning(message, category, filename, lineno, file, line)
    elif not issubclass(category, DecompressionBombWarning):  # up to twice the pixels that cause it are allowed
        remark("warned", f"Pillow: {message}")
