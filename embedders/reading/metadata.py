"""Reader of the metadata of a sample: the fields that are needed, from its `.json` and its short text members.

Owns what a field is and its type; not which members form a sample (`samples`), nor the columns (`columns`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from embedders.output.failed import FailureKind, SampleError
from embedders.reading.samples import IMAGE_SUFFIXES, Sample

# Suffixes of short texts, as in webdataset. A member with any other suffix is read if a field of that name is needed.
TEXT_SUFFIXES = {"txt", "text", "transcript", "caption", "cls", "cls2", "class", "count", "index", "inx", "id"}
# Of a .json or a text. Parsed JSON takes up to 24 times its size, and a few batches of it are in memory at a time.
MAX_TEXT_BYTES = 1 << 20
# Whatever is read must also be writable: json.dumps raises RecursionError for deeper nesting.
MAX_JSON_DEPTH = 100
# Python reads NaN and Infinity, which are not JSON, and would write them into a column of JSON. There is one decoder,
# because json.loads would make one for each call, which takes longer than parsing a short .json.
_JSON = json.JSONDecoder(parse_constant=lambda name: None)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int64": int,
    "float64": float,
    "bool": lambda text: _BOOLS[text.lower()],
}


def list_suffixes(fields: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return the suffixes of the members that `read_metadata` reads for these fields."""
    names = TEXT_SUFFIXES if fields is None else {*map(str.lower, fields), *(["txt"] if "caption" in fields else [])}
    return tuple(f".{name}" for name in sorted({"json", *names} if names else ()))


def read_metadata(sample: Sample, fields: Mapping[str, str] | None = None) -> dict:
    """Return `__key__` and the fields of a sample. Members that no field needs are not read, so they cannot fail.

    A member whose suffix is the field's name holds the field, as text: `x.cls`, `x.meta.json`. `x.txt`, or otherwise
    the only `x.*.txt`, holds `caption`. Other fields come from the `.json`. A member that was not read counts as
    absent.

    Args:
        sample: The sample.
        fields: The type of each field that is needed: `string`, `int64`, `float64` or `bool`. The text of a member is
            converted to it. `None` reads all fields, as text.

    Raises:
        SampleError: A member that is needed cannot be read.
    """
    types = fields
    if types is None:
        suffixes = [suffix for suffix in sample.members if _is_text(suffix) and suffix != "txt"]
        types = dict.fromkeys([*suffixes, "caption"], "string")
    texts = {}
    for name, type_name in types.items():
        suffix = _find_text(sample.members, name)
        if suffix is not None:
            texts[name] = _parse_text(suffix, _read_text(sample.members, suffix), type_name)
    needs_json = fields is None or not texts.keys() >= fields.keys() - {"__key__"}
    return (_read_json(sample.members) if needs_json else {}) | texts | {"__key__": sample.key}


def require_text(metadata: Mapping[str, Any], field: str, option: str) -> str:
    """Return a field of a sample's metadata that must be a text with a word in it.

    Args:
        metadata: From `read_metadata`.
        field: The field.
        option: The option that names the field, for the message.

    Raises:
        SampleError: There is no such text.
    """
    text = metadata.get(field)
    if isinstance(text, str) and text.strip():
        return text
    found = "none" if text is None else "an empty one" if isinstance(text, str) else repr(text)[:80]
    raise _bad(
        f"its {field!r} ({option}) is {found}; expected a text, in its .txt or .json; name the field that holds it"
    )


def _is_text(suffix: str) -> bool:
    last = suffix.rpartition(".")[2]
    return last in TEXT_SUFFIXES or (last == "json" and suffix != "json")


def _find_text(members: Mapping[str, bytes | None], name: str) -> str | None:
    """Return the suffix of the member that holds a field as text, if there is one."""
    suffix = name.lower()
    choices = [suffix]
    if suffix == "caption":
        dotted = [other for other in members if other.endswith(".txt")]
        choices = ["txt", suffix, *(dotted if len(dotted) == 1 else [])]
    elif suffix == "json" or suffix.rpartition(".")[2] in IMAGE_SUFFIXES:
        return None
    return next((choice for choice in choices if members.get(choice) is not None), None)


def _read_text(members: Mapping[str, bytes | None], suffix: str) -> str:
    _check_size(members, suffix)
    try:
        return (members[suffix] or b"").decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _bad(f"its .{suffix} is not UTF-8: {error}") from error


def _parse_text(suffix: str, text: str, type_name: str) -> str | int | float | bool:
    try:
        return _PARSERS[type_name](text)
    except (ValueError, KeyError):
        raise _bad(f"its .{suffix} is {text[:200]!r}; expected {type_name}") from None


def _read_json(members: Mapping[str, bytes | None]) -> dict:
    content = members.get("json")
    if content is None:
        return {}
    _check_size(members, "json")
    try:
        metadata = _JSON.decode(content.decode(json.detect_encoding(content), "surrogatepass"))
    except RecursionError:
        raise _bad("its .json is nested too deeply") from None
    except ValueError as error:
        raise _bad(f"its .json cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise _bad(f"its .json holds a {type(metadata).__name__}, expected an object")
    if content.count(b"{") + content.count(b"[") > MAX_JSON_DEPTH and _is_deep(metadata):
        raise _bad("its .json is nested too deeply")
    return metadata


def _check_size(members: Mapping[str, bytes | None], suffix: str) -> None:
    size = len(members[suffix] or b"")
    if size > MAX_TEXT_BYTES:
        raise _bad(f"its .{suffix} has {size} bytes; expected at most {MAX_TEXT_BYTES}")


def _is_deep(metadata: dict) -> bool:
    level = [metadata]
    for _ in range(MAX_JSON_DEPTH):
        nested = [value for value in level if isinstance(value, dict | list)]
        if not nested:
            return False
        level = [inner for value in nested for inner in (value.values() if isinstance(value, dict) else value)]
    return True


def _bad(message: str) -> SampleError:
    return SampleError(FailureKind.BAD_METADATA, message)
