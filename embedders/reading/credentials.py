"""Opens servers with the credentials that users already have; Tarquet has no settings of its own for them.

S3 takes the settings of boto3 (`~/.aws`, `AWS_*`), Google its application default credentials, the web `~/.netrc`.
"""

import base64
import netrc
import os
import re
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError, make_one_line

# For each part of a file; the time for a whole one is not limited.
READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 60, 15
# Where the settings of each kind of server are.
_SETTINGS = {"s3": "~/.aws and AWS_*", "gs": "GOOGLE_*", "http": "~/.netrc", "https": "~/.netrc"}
# The servers that every region of Amazon has.
_OF_AMAZON = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")


@cache
def open_store(scheme: str, host: str, retries: int) -> Any:
    """Return obstore's store of a bucket or a web server, with what the user's settings say of it.

    Args:
        scheme: Of the address.
        host: The bucket, or the host and port.
        retries: How often the store tries again by itself.

    Raises:
        ConfigError: The address or the settings cannot be used.
    """
    from obstore.exceptions import BaseError

    try:
        return _open_store(scheme, host, retries)
    except (BaseError, OSError, ValueError) as error:
        reason = make_one_line(str(error).partition("\n\nDebug source")[0])
        raise ConfigError(
            f"'{scheme}://{host}': {reason}; expected a server that can be opened; check the address and "
            f"{_SETTINGS[scheme]}"
        ) from error


def _open_store(scheme: str, host: str, retries: int) -> Any:
    from obstore.store import GCSStore, HTTPStore

    client: dict[str, Any] = {
        "timeout": "365days",  # the default is half a minute
        "read_timeout": f"{READ_TIMEOUT_S}s",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
    }
    common: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": retries}}
    if scheme == "gs":
        return GCSStore(host, **common)
    if scheme == "s3":
        return _open_bucket(host, client, common)
    client["allow_http"] = scheme == "http"
    if login := _find_login(host.partition(":")[0]):
        client["default_headers"] = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    return HTTPStore.from_url(f"{scheme}://{host}", **common)


def _open_bucket(bucket: str, client: dict[str, Any], common: dict[str, Any]) -> Any:
    """Open a bucket with the credentials, region and endpoint that boto3 finds."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    try:
        session = boto3.Session()
        credentials = session.get_credentials()
        once = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1})
        s3 = session.client("s3", config=once if credentials else once.merge(Config(signature_version=UNSIGNED)))
    except BotoCoreError as error:
        raise ValueError(str(error)) from error
    options: dict[str, Any] = {"region": s3.meta.region_name}
    if _OF_AMAZON.fullmatch(s3.meta.endpoint_url):
        options["region"] = _find_region(s3, bucket) or s3.meta.region_name
    else:
        options["endpoint"] = s3.meta.endpoint_url
        client["allow_http"] = s3.meta.endpoint_url.startswith("http://")
    if certificates := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(certificates).read_bytes()
    if credentials is None:
        return S3Store(bucket, skip_signature=True, **options, **common)
    provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
    return S3Store(bucket, credential_provider=provider, **options, **common)


def _find_region(s3: Any, bucket: str) -> str | None:
    """Return the region of a bucket of Amazon, which obstore needs, and which may not be that of the settings."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = s3.head_bucket(Bucket=bucket)
    except ClientError as error:  # Amazon names the region of a bucket also to those who may not read it
        answer = error.response
    except BotoCoreError:
        return None  # the first request of obstore will say what is wrong
    return answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")


def _find_login(host: str) -> str | None:
    """Return name and password for a host from `~/.netrc`, or from the file that `NETRC` names, as curl does."""
    try:
        found = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc")).authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError) as error:
        raise ConfigError(
            f"~/.netrc cannot be read ({make_one_line(str(error))}); expected lines as for curl"
        ) from error
    return f"{found[0]}:{found[2]}" if found else None
