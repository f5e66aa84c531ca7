"""Opens servers with the credentials that users already have; Tarquet has no settings of its own for them.

S3 takes the settings of boto3 (`~/.aws`, `AWS_*`), Google its application default credentials, the web `~/.netrc`.
"""

import base64
import netrc
import os
import re
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from embedders.errors import ConfigError, make_one_line

# For each part of a file; the time for a whole one is not limited.
READ_TIMEOUT_S, CONNECT_TIMEOUT_S = 60, 15


@cache
def open_store(scheme: str, host: str, retries: int) -> Any:
    """Return obstore's store of a bucket or a web server, with what the user's settings say of it.

    Args:
        scheme: Of the address.
        host: The bucket, or the host and port.
        retries: How often the store tries again by itself.

    Raises:
        ConfigError: The settings cannot be used.
    """
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
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    try:
        session = boto3.Session()
        s3 = session.client("s3", config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1}))
        credentials = session.get_credentials()
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"'s3://{bucket}': {make_one_line(str(error))}; check ~/.aws and AWS_*") from error
    options: dict[str, Any] = {"region": s3.meta.region_name}
    if not re.search(r"\.amazonaws\.com(\.cn)?$", s3.meta.endpoint_url):
        options["endpoint"] = s3.meta.endpoint_url
        client["allow_http"] = s3.meta.endpoint_url.startswith("http://")
    elif credentials:
        # obstore needs the region of the bucket, which may not be that of the settings. If this request fails, the
        # first one of obstore will say what is wrong.
        with suppress(BotoCoreError, ClientError):
            options["region"] = s3.head_bucket(Bucket=bucket).get("BucketRegion", options["region"])
    if certificates := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(certificates).read_bytes()
    if credentials is None:
        return S3Store(bucket, skip_signature=True, **options, **common)
    provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
    return S3Store(bucket, credential_provider=provider, **options, **common)


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
