"""`Terms`: what counts as a free GPU, as set in `config.yaml` or on the command line. Owns the defaults."""

from dataclasses import dataclass

from embedders.errors import ConfigError


@dataclass(frozen=True)
class Terms:
    """What counts as a free GPU, and how long a job waits for one. The names are those of the keys in config.yaml.

    Attributes:
        gpu_wait_timeout_s: Seconds to wait for a free GPU; with 0 it looks only once.
        gpu_max_used_mb: Memory that may already be in use, in MiB. The default allows for the windows of a desktop.
        gpu_max_processes: Compute processes of others that may already run, such as the server of MPS.
        jobs_per_gpu: Jobs that may share a GPU. If jobs have different numbers, at most the largest of them share a
            GPU, and a job with 1 does not share.
    """

    gpu_wait_timeout_s: float = 3600
    gpu_max_used_mb: int = 1024
    gpu_max_processes: int = 0
    jobs_per_gpu: int = 1

    def __post_init__(self) -> None:
        if self.jobs_per_gpu < 1:
            raise ConfigError(f"jobs_per_gpu={self.jobs_per_gpu!r}: expected 1 (a GPU for each job) or more")
