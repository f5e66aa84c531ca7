"""CPU seconds of a forward pass with and without `embedders.gpu.device.keep_freed_memory`.

    python benchmarks/malloc.py

Each run is a process of its own; median of 5, interleaved. CPU seconds and not wall time: they are what a busy
machine does not change.
"""

import resource
import statistics
import subprocess
import sys

RUNS, BATCHES, BATCH_SIZE = 5, 3, 32


def measure(keeps_memory: bool) -> float:
    """CPU seconds (user and system) of `BATCHES` forward passes of EfficientNet-Lite0."""
    import timm
    import torch

    from embedders.gpu.device import keep_freed_memory

    if keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(2)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().to(memory_format=torch.channels_last)
    batch = torch.randn(BATCH_SIZE, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(batch)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(BATCHES):
            model(batch)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1] == "keep"))
        sys.exit()
    seconds = {"as glibc does": [], "keep": []}
    for _ in range(RUNS):
        for mode, measured in seconds.items():
            output = subprocess.run(
                [sys.executable, __file__, mode], capture_output=True, text=True, check=True
            ).stdout
            measured.append(float(output))
    medians = {mode: statistics.median(measured) for mode, measured in seconds.items()}
    for mode, median in medians.items():
        print(f"{mode:15} {median:6.2f} CPU s for {BATCHES * BATCH_SIZE} images")
    print(f"ratio           {medians['as glibc does'] / medians['keep']:6.2f}")
