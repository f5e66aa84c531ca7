"""`Terms`: what counts as a free GPU, as `config.yaml` and the command line say it. The defaults stand here."""

from dataclasses import dataclass

from embedders.errors import ConfigError


@dataclass(frozen=True)
class Terms:
    """What counts as a free GPU, and how long a job waits for one. The names are those of the keys in config.yaml.

    Attributes:
        gpu_wait_timeout_s: Seconds to wait for a free GPU; 0 looks once.
        gpu_max_used_mb: Memory that may be in use already, in MiB. The default lets the windows of a desktop pass.
        gpu_max_processes: Compute processes of others that may run already, such as the server of MPS.
        jobs_per_gpu: Jobs that may share a GPU. Jobs with different numbers never exceed the largest of them, and one
            that says 1 shares with nobody.
    """

    gpu_wait_timeout_s: float = 3600
    gpu_max_used_mb: int = 1024
    gpu_max_processes: int = 0
    jobs_per_gpu: int = 1

    def __post_init__(self) -> None:
        if self.jobs_per_gpu < 1:
            raise ConfigError(f"jobs_per_gpu={self.jobs_per_gpu!r}: expected 1 (a GPU for each job) or more")
