"""Which files a configuration means, and what each is named: by its own pattern, for every reader to see."""

import os

import pytest
import yaml
from webdataset.shardlists import expand_urls

from embedders.errors import ConfigError
from embedders.planning.shard_names import make_visible, require_distinct
from embedders.planning.shards import find_shards, group_shards


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/00.tar", "data/01.tar", "data/sub/00.tar", "other/00.tar", "other/x.tar.gz", "other/y.tgz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "notes.txt").touch()
    return tmp_path


def test_a_glob_names_shards_by_their_path_below_its_fixed_part(folder):
    assert find_shards("data/*.tar") == {"00": "data/00.tar", "01": "data/01.tar"}
    assert find_shards("data/**/*.tar") == {"00": "data/00.tar", "01": "data/01.tar", "sub/00": "data/sub/00.tar"}
    assert find_shards("*/*.tar") == {"data/00": "data/00.tar", "data/01": "data/01.tar", "other/00": "other/00.tar"}
    assert find_shards(f"{folder}/data/0[1].tar") == {"01": f"{folder}/data/01.tar"}


def test_compressed_shards_lose_their_whole_suffix(folder):
    assert find_shards("other/*") == {"00": "other/00.tar", "x": "other/x.tar.gz", "y": "other/y.tgz"}


def test_braces_lists_and_text_files(folder):
    assert find_shards("data/{00..01}.tar") == {"00": "data/00.tar", "01": "data/01.tar"}
    assert find_shards("{data,other}/00.tar") == {"data/00": "data/00.tar", "other/00": "other/00.tar"}
    assert find_shards(["data/01.tar", "other/x.tar.gz"]) == {"01": "data/01.tar", "x": "other/x.tar.gz"}
    (folder / "list.txt").write_text("# mine\n data/01.tar \n\nother/{x.tar.gz,y.tgz}\n")
    assert find_shards("list.txt") == {"01": "data/01.tar", "x": "other/x.tar.gz", "y": "other/y.tgz"}


# A name depends on the shard's own pattern alone.


@pytest.mark.parametrize("more", ["other/x.tar.gz", "other/*z", ["data/sub/*.tgz", "other/y.tgz"], "more.txt"])
def test_another_pattern_renames_nothing(folder, more):
    (folder / "data/sub/z.tgz").touch()
    (folder / "more.txt").write_text("other/x.tar.gz\n")
    before = find_shards("data/*.tar")
    after = find_shards(["data/*.tar", *([more] if isinstance(more, str) else more)])
    assert before.items() < after.items()


def test_one_pattern_that_becomes_two_keeps_the_names(folder):
    (folder / "data/sub/deep").mkdir()
    (folder / "data/sub/deep/1.tar").touch()
    whole = find_shards("data/**/*.tar")
    assert whole == find_shards(["data/*.tar", "data/./sub/*.tar", "data/./sub/deep/*.tar"])
    assert whole == find_shards({".": "data/*.tar", "sub": "data/sub/**/*.tar"})


def test_a_list_that_grows_renames_nothing(folder):
    (folder / "list.txt").write_text("data/00.tar\n")
    before = find_shards("list.txt")
    (folder / "list.txt").write_text("other/x.tar.gz\ndata/00.tar\ndata/./sub/00.tar\n")
    assert find_shards("list.txt") == before | {"x": "other/x.tar.gz", "sub/00": "data/sub/00.tar"}


def test_the_keys_of_a_mapping_become_folders(folder):
    found = find_shards({"train": "data/*.tar", "val/a": ["other/*.tar", "other/y.tgz"], ".": "other/x.tar.gz"})
    assert found == {
        **{"train/00": "data/00.tar", "train/01": "data/01.tar"},
        **{"val/a/00": "other/00.tar", "val/a/y": "other/y.tgz", "x": "other/x.tar.gz"},
    }


def test_a_list_that_becomes_a_mapping_keeps_its_names_under_the_key_that_is_no_folder(folder):
    before = find_shards(["data/*.tar", "other/x.tar.gz"])
    after = find_shards({".": ["data/*.tar", "other/x.tar.gz"], "other": "other/*.tar"})
    assert after == before | {"other/00": "other/00.tar"}


@pytest.mark.parametrize(
    ("shards", "advice"),
    [
        (["data/*.tar", "other/*.tar"], "for example shards: {.: data/*.tar, other: other/*.tar}"),
        (["data/*.tar", "data/sub/*.tar"], "for example shards: {.: data/*.tar, sub: data/sub/*.tar}"),
        (
            {"train": ["data/*.tar", "other/*.tar"]},
            "for example shards: {train: data/*.tar, train/other: other/*.tar}",
        ),
        ("list.txt", "mark with /./ in 'list.txt' where the name begins, for example 'FOLDER/./other/00.tar'"),
        (["data/*.tar", "more.txt"], "for example shards: {.: data/*.tar, other: more.txt}"),
    ],
)
def test_two_shards_of_one_name_are_refused_with_what_to_write_and_that_is_right(folder, shards, advice):
    (folder / "list.txt").write_text("data/00.tar\nother/00.tar\n")
    (folder / "more.txt").write_text("other/00.tar\n")
    with pytest.raises(ConfigError, match=r"would both be named '(train/)?00'") as caught:
        find_shards(shards)
    message = str(caught.value)
    assert "'data/00.tar' and '" in message and message.endswith(advice.replace("FOLDER", str(folder)))
    if "list.txt" in message:
        (folder / "list.txt").write_text("data/00.tar\n" + message.rpartition(" for example ")[2].strip("'"))
        assert find_shards("list.txt") == {"00": "data/00.tar", "other/00": f"{folder}/other/00.tar"}
    else:
        assert len(find_shards(yaml.safe_load(message.rpartition(" for example shards: ")[2]))) >= 2


def test_addresses_of_one_name_are_refused_with_a_mark_that_is_right(folder):
    (folder / "list.txt").write_text("s3://b/photos/x/0.tar\ns3://b/photos/y/0.tar\n")
    with pytest.raises(ConfigError, match=r"for example 's3://b/photos/\./y/0\.tar'$"):
        find_shards("list.txt")
    (folder / "list.txt").write_text("s3://b/photos/x/0.tar\ns3://b/photos/./y/0.tar\n")
    assert find_shards("list.txt") == {"0": "s3://b/photos/x/0.tar", "y/0": "s3://b/photos/y/0.tar"}
    with pytest.raises(ConfigError, match=r"for example shards: \{.: 's3://a/0.tar', b: 's3://b/0.tar'\}$"):
        find_shards(["s3://a/0.tar", "s3://b/0.tar"])


def test_shards_of_one_pattern_and_name_are_refused(folder):
    (folder / "data" / "00.tar.gz").touch()
    with pytest.raises(ConfigError, match=r"'data/00.tar' and 'data/00.tar.gz' would both be named '00'; rename one"):
        find_shards("data/*")
    found = find_shards({".": "data/*.tar", "gz": "data/*.tar.gz"})
    assert found["gz/00"] == "data/00.tar.gz"


def test_a_shard_that_is_named_twice_is_there_once(folder):
    (folder / "link").symlink_to("data")
    patterns = ["data/00.tar", "./data/00.tar", "data//00.tar", f"{folder}/data/00.tar", "link/00.tar", "data/*.tar"]
    assert find_shards(patterns) == {"00": "data/00.tar", "01": "data/01.tar"}
    assert find_shards(["data/*.tar", "**/*.tar"])["00"] == "data/00.tar"
    assert "data/00" not in find_shards(["data/*.tar", "**/*.tar"])


def test_a_shard_under_two_keys_is_refused(folder):
    with pytest.raises(ConfigError, match=r"'data/00.tar' is matched under two keys, by 'data/\*.tar' under 'train'"):
        find_shards({"train": "data/*.tar", "val": "data/00.tar"})


@pytest.mark.parametrize("key", ["", " ", "/train", "a//b", "../a", "./a", "..", "a{b}", "a\nb"])
def test_a_key_must_be_the_name_of_a_folder(folder, key):
    with pytest.raises(ConfigError, match=r"^shards: (the key )?'"):
        find_shards({key: "data/*.tar"})


# Names that something else would read otherwise.


def test_names_that_readers_pass_over_or_take_for_columns_are_written_visibly(folder):
    for name in (
        "odd/_a.tar",
        "odd/.b/_c.tar",
        "odd/year=2024/0=1.tar",
        "odd/__d.tar",
        "odd/e._=f.tar",
        "odd/g\\h::i:j.tar",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = find_shards(["odd/**/*.tar", "odd/./.b/*.tar"])
    assert set(found) == {"%5Fa", "%2Eb/%5Fc", "year%3D2024/0%3D1", "%5F_d", "e._%3Df", "g%5Ch%3A:i:j"}
    assert found["%2Eb/%5Fc"] == "odd/.b/_c.tar"
    assert set(find_shards({"_x": "odd/_a.tar"})) == {"%5Fx/%5Fa"}


def test_brackets_and_quotes_are_parts_of_names(folder):
    names = ["[a].tar", "it's.tar", 'a "b" c.tar', "#1.tar", "~x.tar", "$HOME.tar", "ü\u3000.tar", "a../b.tar"]
    for name in names:
        (folder / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "odd" / name).touch()
    assert find_shards("odd/**/*.tar") == {name.removesuffix(".tar"): f"odd/{name}" for name in names}
    (folder / "list.txt").write_text("\n".join(f"odd/{name}" for name in names[:-1]))
    assert find_shards("list.txt") == {name.removesuffix(".tar"): f"odd/{name}" for name in names[:-1]}
    (folder / "-rf.tar").touch()
    assert find_shards("*.tar") == {"-rf": "./-rf.tar"}
    (folder / "[b]").mkdir()
    (folder / "[b]/0.tar").touch()
    with pytest.raises(ConfigError, match=r"write a \[ that is part of a name as \[\[\]$"):
        find_shards("[b]/*.tar")
    assert find_shards("[[]b]/*.tar") == {"[b]/0": "[b]/0.tar"}


@pytest.mark.parametrize("name", ["a{b}", "a{", "a\nb", "a\tb", "a\x1b[0m", "a\udcff"])
def test_a_name_that_snakemake_or_parquet_cannot_hold_is_refused_in_a_line(folder, name):
    (folder / "odd").mkdir()
    (folder / f"odd/{name}.tar").touch()
    with pytest.raises(ConfigError, match=r"(has a brace|has a control character).*; rename it, or") as caught:
        find_shards("odd/*.tar")
    assert repr(f"odd/{name}.tar") in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_name_must_leave_room_for_what_is_made_from_it(folder):
    with pytest.raises(ConfigError, match="has 231 bytes; expected at most 229"):
        make_visible("a" * 231)
    partial = folder / f".{make_visible('a' * 229)}.parquet.01234567.partial"
    partial.touch()


def test_a_folder_with_the_name_of_a_result_is_refused(folder):
    (folder / "data/00.parquet").mkdir()
    (folder / "data/00.parquet/1.tar").touch()
    assert "00.parquet/1" in find_shards("data/*/*.tar")
    with pytest.raises(ConfigError, match=r"'00.parquet' cannot be a file and a folder; rename one"):
        find_shards("data/**/*.tar")


def test_names_that_differ_in_case_are_two_where_the_file_system_says_so(folder):
    require_distinct(["a", "A", "b"], "results/new")
    (folder / "results").mkdir()
    (folder / "RESULTS").symlink_to("results")  # as a file system without case shows the folder
    require_distinct(["a", "b"], "results/new")
    with pytest.raises(ConfigError, match="the results of 'a' and 'A' would be one file"):
        require_distinct(["a", "A", "b"], "results/new")


def test_a_home_folder_is_written_out_and_a_variable_is_not(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert find_shards("~/data/00.tar") == {"00": f"{folder}/data/00.tar"}
    (folder / "list.txt").write_text("~/data/*.tar\n")
    assert list(find_shards("~/list.txt")) == ["00", "01"]
    for pattern in ("$HOME/data/*.tar", "$HOME/data/00.tar"):
        with pytest.raises(ConfigError, match=r"variables such as \$HOME are not expanded, write the value$"):
            find_shards(pattern)


def test_a_list_as_other_systems_write_it(folder):
    (folder / "list.txt").write_bytes("\ufeffdata/00.tar\r\n\r\n# no\r\n\tdata/01.tar\r\n".encode())
    assert find_shards("list.txt") == {"00": "data/00.tar", "01": "data/01.tar"}
    (folder / "data/a\u2028b.tar").touch()
    with pytest.raises(ConfigError, match=r"'data/a\\u2028b.tar' has a control character"):
        find_shards("data/a*.tar")


# Paths.


def test_no_name_leads_out_of_the_results(folder, monkeypatch):
    monkeypatch.chdir(folder / "data")
    assert find_shards("{../other,sub}/00.tar") == {"other/00": "../other/00.tar", "sub/00": "sub/00.tar"}
    assert find_shards("../other/00.tar") == {"00": "../other/00.tar"}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("none/*.tar", "'none/\\*.tar' matches no file that ends in .tar, .tar.gz, .tgz"),
        ("data/*.txt*", "matches no file that ends in .tar"),
        ("data/02.tar", "there is no file 'data/02.tar'"),
        ("data/{00..02}.tar", "there is no file 'data/02.tar'"),
        ("data/{00..01.tar", "Unbalanced"),
        ("data/00.zip", "'data/00.zip': expected a file that ends in"),
        ("data/", r"'data/': expected a file that ends in .*; for a folder, write 'data/\*.tar'"),
        ("none.txt", "list 'none.txt' cannot be read"),
        ("empty.txt", "list 'empty.txt' is empty"),
        ("binary.txt", "list 'binary.txt' cannot be read"),
    ],
)
def test_a_pattern_that_names_nothing_is_one_line(folder, pattern, reason):
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=reason) as caught:
        find_shards(pattern)
    assert "\n" not in str(caught.value)


def test_a_broken_link_is_named_before_the_run(folder):
    for name in ("data/02.tar", "other/02.tar"):
        (folder / name).symlink_to("gone.tar")
    with pytest.raises(ConfigError, match=r"^shards: 'data/02.tar' cannot be looked up \(No such file or dir"):
        group_shards(find_shards("data/*.tar"), "auto")
    with pytest.raises(ConfigError, match="would both be named '02'"):
        find_shards(["data/02.tar", "other/02.tar"])


def test_a_shard_that_was_added_is_found_without_a_new_process(folder):
    with pytest.raises(ConfigError):
        find_shards("data/02.tar")
    (folder / "data" / "02.tar").touch()
    assert find_shards("data/02.tar") == {"02": "data/02.tar"}


def test_a_hundred_thousand_shards_are_found_by_one_listing(tmp_path, monkeypatch):
    # On a network file system a look-up per shard takes minutes: nothing may ask for the files one by one.
    names = [f"{n:05d}.tar" for n in range(100_000)]
    (tmp_path / "00000.tar").touch()
    listings = []
    monkeypatch.setattr(
        "embedders.planning.shards._list_folder", lambda folder: listings.append(folder) or frozenset(names)
    )
    lookups = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: lookups.append(path) or stat(path, *a, **k))
    found = find_shards(f"{tmp_path}/{{00000..99999}}.tar")
    monkeypatch.undo()
    assert len(found) == 100_000
    assert listings == [str(tmp_path)]
    assert len(lookups) < 10
    assert list(found.items())[99_999] == ("99999", f"{tmp_path}/99999.tar")


# webdataset's own patterns


@pytest.mark.parametrize(
    "pattern",
    ["{00..02}.tar", "{a,b}-{8..11}.tar", "{01..09..4}.tar", "{2..0}.tar", "x{,-y}.tar", "{a..c}.tar", "plain.tar"],
)
def test_braces_expand_as_webdatasets_do(folder, pattern):
    expected = expand_urls(f"other/{pattern}")
    for path in expected:
        (folder / path).touch()
    assert sorted(find_shards(f"other/{pattern}").values()) == sorted(expected)
    addresses = [path.replace("other", "https://host") for path in expected]
    assert sorted(find_shards(f"https://host/{pattern}").values()) == sorted(addresses)


@pytest.mark.parametrize(
    "pattern",
    [
        "data/00.tar::data/01.tar",
        "data/{00..01}.tar::other/00.tar",
        "data/*.tar::other/*.tar",
        "s3://b/0.tar::s3://b/1.tar",
        "https://host/0.tar?key=secret::https://host/1.tar",
    ],
)
def test_webdatasets_list_by_colons_is_refused_with_what_to_write(folder, pattern):
    with pytest.raises(ConfigError, match=r"a\.tar::b\.tar is written as a list, \[a\.tar, b\.tar\]") as caught:
        find_shards(pattern)
    assert "secret" not in str(caught.value)
    (folder / "data/a::b.tar").touch()
    assert find_shards("data/a::b.tar") == find_shards("data/a*.tar") == {"a%3A:b": "data/a::b.tar"}


def test_webdatasets_variables_are_refused_too(folder):
    with pytest.raises(ConfigError, match=r"variables such as \$HOME are not expanded"):
        find_shards("$FOLDER/00.tar")
