"""What decoders say about an image that they decode all the same, kept for the sample that it is about.

Decoders run on several threads and know no sample: they, and Pillow through Python's warnings, say it here, and the
loader, which does know the sample, collects it on the same thread.
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
    """Return a list to which all that is said on this thread is added from now on, as kind and text."""
    if warnings.showwarning is not _show:
        _take_over_warnings()
    remarks: list[tuple[str, str]] = []
    _thread.remarks = remarks
    return remarks


def remark(kind: str, text: str) -> None:
    """Say something about the image that is decoded on this thread; the same a second time adds nothing.

    Args:
        kind: A short word to count by, as `patched`.
        text: What was found, for a person, in one line.
    """
    remarks = getattr(_thread, "remarks", None)
    if remarks is None:  # a loader of the user's own
        log.warning("%s: %s", kind, text)
    elif (kind, text) not in remarks:
        remarks.append((kind, text))


def _take_over_warnings() -> None:
    global _show_warning
    _show_warning = warnings.showwarning
    warnings.showwarning = _show
    # Else Python shows only the first of its kind. At the end of the list, so that filters of the user's own hold.
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
    elif not issubclass(category, DecompressionBombWarning):  # up to twice as many pixels as it warns of are allowed
        remark("warned", f"Pillow: {message}")
