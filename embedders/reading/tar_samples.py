"""The samples of a shard for pipelines of webdataset, read as strictly as by the default loader.

Owns the form of the samples; what the tar holds and what is wrong with it is found by `loader` and `samples`.
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from embedders.reading.loader import find_load, open_samples


class TarSamples(IterableDataset):
    """The samples of a shard as webdataset's dicts: the first stage of a `webdataset.DataPipeline`.

    A dict holds `__key__`, `__url__` and the bytes of each member by its suffix, as webdataset's own do. Made inside
    of `load_dataset_shard`, it works for the job: every sample is counted, and one that cannot be used is not yielded
    but becomes a row of the ledger, with its kind. By itself it names such samples in the log.

    Args:
        tar_path: Path of a `.tar`, or of one compressed by gzip.

    Raises:
        ShardError: On reading: the shard is missing, or is damaged and damage is not accepted.
    """

    def __init__(self, tar_path: str):
        super().__init__()
        self.tar_path = tar_path
        self._load = find_load(tar_path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for sample in open_samples(self.tar_path, self._load, wants=lambda name: True):
            yield {"__key__": sample.key, "__url__": self.tar_path, **sample.members}

    def __reduce__(self):
        # The account stays in the job's process: what a worker of a DataLoader leaves out counts there as not loaded.
        return type(self), (self.tar_path,)
