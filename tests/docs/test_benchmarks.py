"""The benchmarks that need another machine or an hour are at least known to start."""

import subprocess
import sys

import pytest
from support.tools import ROOT, clean_environment, make_shard


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_names_the_lower_limit(tmp_path):
    make_shard(tmp_path / "0.tar", 6)
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--models", "test_vit"]
    options = ["--shards", f"{tmp_path}/*.tar", "--repeat", "2", "--runs", "2", "--batch-size", "4"]
    run = subprocess.run([*command, *options], cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row = run.stdout.splitlines()[-1].split()
    assert row[0] == "test_vit"
    assert all(float(rate) > 0 for rate in row[1:5])
    rates = {"model": float(row[1]), "reader": float(row[2])}
    assert rates[row[-2]] == min(rates.values())
    assert "6 JPEGs in 1 shards" in run.stdout
