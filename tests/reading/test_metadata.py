"""What a sample says of itself: which member holds which field, and what is not looked at."""

import pytest

from embedders.reading.metadata import MAX_TEXT_BYTES, list_suffixes, read_metadata
from embedders.reading.samples import Sample

BAD = {"latin-1": b"caf\xe9", "UTF-16": "text".encode("utf-16")}
BAD_JSON = {
    "a list of boxes": b"[[1, 2, 3, 4]]",
    "a number": b"7",
    "empty": b"",
    "lines": b'{"a": 1}\n{"a": 2}\n',
    "above 1 MB": b'{"a": "' + b"x" * MAX_TEXT_BYTES + b'"}',
    "deep": b'{"a":' * 500 + b"1" + b"}" * 500,
    "not UTF-8": b'{"a": "\xff"}',
}


def sample_of(**members):
    return Sample("k", "k.jpg", 0, {name.replace("__", "."): content for name, content in members.items()})


def test_metadata_is_the_json_the_caption_and_the_key():
    sample = sample_of(jpg=b"x", json=b'{"a": 1, "__key__": "lie"}', txt=" grüße \n".encode())
    assert read_metadata(sample) == {"a": 1, "caption": "grüße", "__key__": "k"}
    assert read_metadata(sample_of(jpg=b"x")) == {"__key__": "k"}
    assert read_metadata(sample_of(json=b'\xef\xbb\xbf{"a": 2}')) == {"a": 2, "__key__": "k"}
    assert read_metadata(sample_of(json=b'{"a": 1}', txt=None)) == {"a": 1, "__key__": "k"}  # not wanted, not read


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"[1]", "holds a list"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read"),
    ],
)
def test_json_that_cannot_be_read_is_a_value_error(content, reason):
    with pytest.raises(ValueError, match=reason):
        read_metadata(sample_of(json=content))


def test_a_caption_that_is_not_utf8_is_a_value_error():
    with pytest.raises(ValueError, match="not UTF-8"):
        read_metadata(sample_of(txt=b"\xff"))


@pytest.mark.parametrize("bad", BAD_JSON)
def test_a_json_that_nobody_needs_cannot_be_wrong(bad):
    sample = sample_of(jpg=b"x", json=BAD_JSON[bad], txt=b"text", cls=b"7")
    assert read_metadata(sample, {}) == {"__key__": "k"}
    found = read_metadata(sample, {"caption": "string", "cls": "int64"})
    assert found == {"__key__": "k", "caption": "text", "cls": 7}
    for fields in ({"a": "string"}, {"a": "string", "caption": "string"}, None):
        with pytest.raises(ValueError, match=r"^its \.json "):
            read_metadata(sample, fields)


@pytest.mark.parametrize("bad", BAD)
def test_a_text_that_nobody_needs_cannot_be_wrong(bad):
    sample = sample_of(jpg=b"x", json=b'{"a": 1, "caption": "c"}', txt=BAD[bad], cls=BAD[bad])
    assert read_metadata(sample, {"a": "int64"})["a"] == 1
    for fields in ({"caption": "string"}, {"cls": "string"}, None):
        with pytest.raises(ValueError, match=r"its \.(txt|cls) is not UTF-8"):
            read_metadata(sample, fields)


def test_short_text_members_are_fields_by_their_suffix():
    sample = sample_of(
        input__jpg=b"x", cls=b"7\n", id=b"a-1", text=b"t", meta__json=b'{"a": [1]}', outputs__txt=b"\xef\xbb\xbfout"
    )
    everything = {
        "cls": "7", "id": "a-1", "text": "t", "meta.json": '{"a": [1]}', "outputs.txt": "out", "caption": "out",
        "__key__": "k",
    }  # fmt: skip
    assert read_metadata(sample) == everything
    for name, value in everything.items():
        assert read_metadata(sample, {name: "string"}) == {name: value, "__key__": "k"}


def test_any_suffix_that_is_asked_for_is_a_field_and_an_image_is_none():
    sample = sample_of(jpg=b"x", label=b"cat", npy=b"\x93NUMPY", Prompt=b"p")
    assert read_metadata(sample) == {"__key__": "k"}
    assert read_metadata(sample, {"label": "string", "jpg": "string"}) == {"label": "cat", "__key__": "k"}
    with pytest.raises(ValueError, match=r"its \.npy is not UTF-8"):
        read_metadata(sample, {"npy": "string"})
    with pytest.raises(ValueError, match=r"its \.label has 1048577 bytes; expected at most 1048576"):
        read_metadata(sample_of(label=b"x" * (MAX_TEXT_BYTES + 1)), {"label": "string"})


def test_a_member_goes_before_a_field_of_the_json_and_txt_before_caption():
    sample = sample_of(json=b'{"id": 1, "caption": "of json", "a": 2}', id=b"2", caption=b"of caption", txt=b"of txt")
    assert read_metadata(sample) == {"id": "2", "caption": "of txt", "a": 2, "__key__": "k"}
    sample.members.pop("txt")
    assert read_metadata(sample)["caption"] == "of caption"
    sample.members.pop("caption")
    assert read_metadata(sample)["caption"] == "of json"
    sample.members |= {"a.txt": b"a", "b.txt": b"b"}  # which of the two is the caption, nobody knows
    assert read_metadata(sample)["caption"] == "of json"


@pytest.mark.parametrize(
    ("text", "type_name", "value"),
    [
        (b" 007\n", "int64", 7), (b"-3", "int64", -3), (b"2.5", "float64", 2.5), (b"3", "float64", 3.0),
        (b"True", "bool", True), (b"0", "bool", False), (b"007", "string", "007"),
    ],
)  # fmt: skip
def test_the_text_of_a_member_is_converted_to_the_type_of_its_column(text, type_name, value):
    found = read_metadata(sample_of(cls=text), {"cls": type_name})["cls"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("type_name", ["int64", "float64", "bool"])
def test_text_of_another_type_is_named(type_name):
    with pytest.raises(ValueError, match=rf"^its \.cls is 'cat'; expected {type_name}$"):
        read_metadata(sample_of(cls=b"cat"), {"cls": type_name})


def test_only_what_is_needed_is_read():
    assert list_suffixes({}) == ()
    assert list_suffixes({"width": "int64"}) == (".json", ".width")
    assert list_suffixes({"caption": "string"}) == (".caption", ".json", ".txt")
    assert {".json", ".txt", ".cls", ".id"} < set(list_suffixes(None))
