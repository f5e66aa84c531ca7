"""The table of `python -m embedders gpus`: every GPU of this node, and who leases it.

Owns the rows and their text. It only reads: it creates no folder and takes no lease.
"""

from dataclasses import asdict
from typing import Any

from embedders.gpu import nvml
from embedders.gpu.lock_folder import find_folder
from embedders.gpu.locks import format_holder, read_leases

_GIB = 1 << 30


def describe_gpus() -> list[dict[str, Any]]:
    """Return one row for each device, as values for JSON.

    A row holds the fields of `Gpu`, and

    - `leases`: what each holder wrote (`pid`, `host`, `shard`, `since`), or a `problem` of the lock file.
    - `foreign_process_count`: compute processes beyond one for each lease. PIDs are not compared (see
      `lease.why_busy`), so one foreign process is not counted for each lease whose job does not compute yet.

    Raises:
        NoDriverError: This machine has no driver.
        GpuError: The driver does not work.
    """
    folder = find_folder()
    rows = []
    for gpu in nvml.read_gpus():
        leases = read_leases(folder, gpu.uuid) if gpu.uuid else []
        foreign = None if gpu.process_count is None else max(0, gpu.process_count - len(leases))
        rows.append(asdict(gpu) | {"uuid": gpu.uuid or None, "foreign_process_count": foreign, "leases": leases})
    return rows


def format_gpus(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `describe_gpus` as a table; `-` stands for what the driver does not report."""
    if not rows:
        return "The driver lists no GPU."
    head = ["GPU", "UUID", "NAME", "FREE/TOTAL GiB", "UTIL", "FOREIGN", "MIG PARENT", "LEASED BY"]
    lines = [head, *(_format_row(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _format_row(row: dict[str, Any]) -> list[str]:
    used = ", ".join(format_holder(holder) for holder in row["leases"])
    sizes = ("free_bytes", "total_bytes")
    return [
        _show(row["index"]),
        _show(row["uuid"]),
        _show(row["name"]),
        "/".join(_show(row[name], lambda size: f"{size / _GIB:.1f}") for name in sizes),
        _show(row["utilization_percent"], "{}%".format),
        _show(row["foreign_process_count"]),
        _show(row["mig_parent_uuid"]),
        "; ".join(filter(None, [used, row["problem"]])) or "-",
    ]


def _show(value: Any, form: Any = str) -> str:
    return "-" if value is None else form(value)
