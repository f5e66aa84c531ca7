"""What real servers are asked about addresses: versions, listings, and lines for what cannot be had."""

import os
import re

import pytest
from support.servers import make_certificates, start_bucket, start_web
from support.tools import clean_environment, run_python

from embedders.errors import ConfigError, ShardError
from embedders.reading import credentials, stores
from embedders.reading.remote import Version, hide_secrets, require_address
from embedders.reading.stores import find_matches, find_versions


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as environment, start_bucket(environment) as bucket:
        for key in ("a/0.tar", "a/1.tar", "a/.2.tar", "a/x.txt", "a/b/3.tar", "a/b/c/4.tar", "x y+ü%20.tar"):
            bucket.put_object(Key=key, Body=b"1234")
        yield bucket


@pytest.fixture
def web(tmp_path):
    with start_web(tmp_path) as web:
        yield web


def test_a_bucket_tells_size_time_and_entity_tag(bucket):
    addresses = ["s3://photos/a/0.tar", "s3://photos/x y+ü%20.tar"]
    versions = find_versions([*addresses, "local.tar"])
    assert list(versions) == addresses
    assert versions[addresses[0]].bytes == 4
    assert versions[addresses[0]].etag == "81dc9bdb52d04dc20036dbd8313ed055"  # the MD5 of 1234
    assert versions[addresses[0]].mtime_ns


def test_many_shards_of_a_folder_are_listed_and_tell_the_same(bucket, monkeypatch):
    addresses = [f"s3://photos/a/{name}.tar" for name in ("0", "1", "b/3")]
    asked = find_versions(addresses)
    monkeypatch.setattr(stores, "MIN_TO_LIST", 1)
    monkeypatch.setattr(stores, "_ask", lambda address: pytest.fail(f"{address} was listed"))
    listed = find_versions(addresses)
    assert all(listed[address].is_same(asked[address]) for address in addresses)


def test_missing_shards_are_named_in_one_line_the_first_five(bucket, web, monkeypatch):
    for least in (1, 100):
        monkeypatch.setattr(stores, "MIN_TO_LIST", least)
        with pytest.raises(ShardError) as caught:
            find_versions([f"s3://photos/a/{number}.tar" for number in range(9)])
        named = ", ".join(f"'s3://photos/a/{number}.tar' (not there)" for number in range(2, 7))
        assert str(caught.value) == (
            f"shards: 7 of 9 addresses cannot be read: {named} and 2 more; expected shards that are there and that "
            "you may read; check the addresses and the credentials"
        )
    with pytest.raises(ShardError, match=r"1 of 1 addresses cannot be read: 's3://none/0\.tar' \(not there\)"):
        find_versions(["s3://none/0.tar"])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("s3://photos/a/*.tar", ["a/0", "a/1"]),
        ("s3://photos/a/[1-9].tar", ["a/1"]),
        ("s3://photos/a/?.tar", ["a/0", "a/1"]),
        ("s3://photos/a/.*.tar", ["a/.2"]),
        ("s3://photos/*/*.tar", ["a/0", "a/1"]),
        ("s3://photos/**/*.tar", ["a/0", "a/1", "a/b/3", "a/b/c/4", "x y+ü%20"]),
        ("s3://photos/a/./**/*.tar", ["a/./0", "a/./1", "a/./b/3", "a/./b/c/4"]),
        ("s3://photos/*/./b/*.tar", ["a/./b/3"]),
        ("s3://photos/none/*.tar", []),
    ],
)
def test_a_pattern_matches_as_in_paths(bucket, pattern, found):
    assert find_matches(pattern) == [f"s3://photos/{name}.tar" for name in found]


def test_a_folder_that_cannot_be_listed_is_said(bucket):
    with pytest.raises(ShardError, match=r"'s3://none/a': .*404.*; expected a folder that you may list"):
        find_matches("s3://none/a/*.tar")
    for pattern in ("https://host/*.tar", "s3://ph*/0.tar"):
        with pytest.raises(
            ConfigError, match=r"only folders of S3 and .* can be listed.* list the addresses in a \.txt"
        ):
            find_matches(pattern)


def test_the_web_tells_what_it_knows_and_reads_percent_codes(web, tmp_path):
    (tmp_path / "a ü+.tar").write_bytes(b"123")
    address = f"{web.address}/a%20%C3%BC+.tar"
    version = find_versions([address])[address]
    assert version.bytes == 3 and version.etag and version.mtime_ns
    web.has_tags = False
    assert find_versions([address])[address] == Version(3)


def test_a_login_comes_from_netrc(web, tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(b"123")
    web.login = "Basic bWU6c2VjcmV0"  # me:secret
    address = f"{web.address}/0.tar"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ShardError, match="access denied"):
        find_versions([address])
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    credentials.open_store.cache_clear()
    assert find_versions([address])[address].bytes == 3


def test_a_server_that_does_not_answer_is_said_in_one_line(web):
    web.close()
    with pytest.raises(ShardError) as caught:
        find_versions([f"{web.address}/{number}.tar" for number in range(100)])
    assert re.search(r"after \d retries .* \(Connection refused\); expected a server that answers", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_web_server_with_tls_is_trusted_by_the_certificates_of_the_machine(tmp_path):
    files = make_certificates(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"123")
    with start_web(tmp_path, certificate=files) as web:
        assert web.address.startswith("https://")
        code = "import sys; from embedders.reading.stores import find_versions; print(find_versions(sys.argv[1:]))"
        lines = {"SSL_CERT_FILE": "Version(bytes=3", "NO_FILE": "(bad certificate, UnknownIssuer); expected a server"}
        for variable, line in lines.items():
            environment = clean_environment() | {variable: str(files[0])}
            done = run_python("-c", code, f"{web.address}/0.tar", env=environment)
            assert line in done.stdout + done.stderr


def test_a_profile_of_aws_names_keys_region_and_server(bucket, tmp_path, monkeypatch):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\n")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    credentials.open_store.cache_clear()
    assert find_versions(["s3://photos/a/0.tar"])
    monkeypatch.setenv("AWS_PROFILE", "none")
    credentials.open_store.cache_clear()
    with pytest.raises(
        ConfigError, match=r"'s3://photos': The config profile \(none\) could not be found; .* and ~/.aws"
    ):
        find_versions(["s3://photos/a/0.tar"])
    credentials.open_store.cache_clear()


@pytest.mark.parametrize(
    ("address", "variable", "content", "line"),
    [
        ("https://ho st/0.tar", "", "", "'https://ho st': invalid international domain name; .* and ~/.netrc"),
        ("https://host:99999/0.tar", "", "", "'https://host:99999': invalid port number; "),
        ("s3://photos/0.tar", "AWS_CA_BUNDLE", None, r"'s3://photos': .*No such file .* and ~/\.aws and AWS_\*"),
        ("s3://photos/0.tar", "AWS_CA_BUNDLE", "no certificate", "'s3://photos': No certificates found in"),
        ("gs://b/0.tar", "GOOGLE_APPLICATION_CREDENTIALS", None, r"'gs://b': .*Unable to open .* and GOOGLE_\*$"),
        ("gs://b/0.tar", "GOOGLE_APPLICATION_CREDENTIALS", "{}", r"'gs://b': .*missing field `type`.* GOOGLE_\*$"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(bucket, tmp_path, monkeypatch, address, variable, content, line):
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "file"))
    if content is not None:
        (tmp_path / "file").write_text(content)
    credentials.open_store.cache_clear()
    with pytest.raises(ConfigError, match=line) as caught:
        find_versions([address])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ftp://host/0.tar", r"'ftp://host/0\.tar': expected an address that begins with s3, gs, http, https"),
        ("https://me:secret@host/0.tar", r"'https://\.\.\.@host/0\.tar': .* write them to ~/\.netrc"),
        ("https://host/0.tar?key=secret", r"'https://host/0\.tar': expected an address without \?"),
        ("s3://a//0.tar", "without // and .. in its path"),
        ("s3://a/../0.tar", "without // and .. in its path"),
        ("s3:///0.tar", "expected an address such as"),
        ("s3://my bucket/0.tar", "expected an address such as"),
        ("gs://bücket/0.tar", "expected an address such as"),
    ],
)
def test_an_address_that_cannot_be_used_is_said_without_its_secrets(address, line):
    with pytest.raises(ConfigError, match=line) as caught:
        require_address(address)
    assert "secret" not in str(caught.value)
    assert "secret" not in hide_secrets(address)


def test_versions_are_compared_by_tag_else_by_size_and_time():
    assert Version(3, 1, "a").is_same(Version(4, 2, "a"))
    assert not Version(3, 1, "a").is_same(Version(3, 1, "b"))
    assert Version(3, 5 * 10**9, "a").is_same(Version(3, 5 * 10**9 + 1))
    assert not Version(3, 5 * 10**9).is_same(Version(3, 6 * 10**9))
    assert Version(3).is_same(Version(3, 5)) and not Version(3).is_same(Version(4))
    assert [version.is_exact for version in (Version(3), Version(3, 1), Version(3, None, "a"))] == [False, True, True]
    assert not Version(3, None, "W/a").is_exact
