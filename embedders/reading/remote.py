"""Shards with an address, such as `s3://bucket/00000.tar`, which Snakemake's storage plugins fetch for each job.

Owns what an address is and what the workflow needs for it. Snakemake fetches and removes the copies.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from embedders.errors import ConfigError

# The plugin of Snakemake for each kind of address.
PLUGINS = {"s3": "s3", "gs": "gcs", "http": "http", "https": "http"}


def is_remote(path: str) -> bool:
    """Return whether a shard has an address and must be fetched."""
    return "://" in path


def check_remote(shards: Iterable[str], shards_per_job: int | str) -> None:
    """Check that the shards with an address can be fetched, without importing a plugin.

    Raises:
        ConfigError: There is no plugin for an address, or a job would process several such shards.
    """
    examples = {path.partition("://")[0]: path for path in shards if is_remote(path)}
    for kind, path in examples.items():
        if kind not in PLUGINS:
            raise ConfigError(f"shards: {path!r}: expected an address that begins with {', '.join(PLUGINS)}")
        if not find_spec(f"snakemake_storage_plugin_{PLUGINS[kind]}"):
            raise ConfigError(
                f"shards: to fetch {path!r} Snakemake needs a plugin, which is not installed: "
                f"`pip install snakemake-storage-plugin-{PLUGINS[kind]}`"
            )
        # A copy that is fetched again looks like a changed shard, so finished shards of the same job would be lost.
        if shards_per_job not in (1, "auto"):
            raise ConfigError(
                f"shards_per_job is {shards_per_job!r}; expected 1 or 'auto' for shards that must be fetched, such "
                f"as {path!r}"
            )
