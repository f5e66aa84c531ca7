import json
import os
import re

from support.fake_nvml.world import describe

from embedders.gpu.lease import lease_gpu
from embedders.gpu.locks import card_path, locked, write_holder
from embedders.gpu.table import describe_gpus, format_gpus
from embedders.gpu.terms import Terms


def test_rows_are_json_and_looking_makes_nothing(node):
    node.write_gpus(2)
    first, second = json.loads(json.dumps(describe_gpus()))
    assert (first["uuid"], second["index"], first["leases"]) == ("GPU-0", 1, [])
    assert not node.leases.exists()


def test_row_names_the_holder(node):
    node.write(describe("GPU-0", procs="0,0,1"))
    with lease_gpu("00007.tar", Terms(0)):
        (row,) = describe_gpus()
    (holder,) = row["leases"]
    assert (holder["pid"], holder["shard"]) == (str(os.getpid()), "00007.tar")
    assert describe_gpus()[0]["leases"] == []


def test_foreign_processes_are_those_beyond_one_for_each_lease(node):
    node.write(describe("GPU-0", procs="3"), describe("GPU-1", procs=1), describe("GPU-2", procs=None))
    with lease_gpu(terms=Terms(0, gpu_max_processes=1)) as gpu:
        assert gpu.uuid == "GPU-2"
        assert [row["foreign_process_count"] for row in describe_gpus()] == [3, 1, None]
        with locked(card_path(node.leases, "GPU-0")):
            assert describe_gpus()[0]["foreign_process_count"] == 2


def test_table(node):
    node.write(
        describe("GPU-0", util=93, procs=1, used=20480, total=81920),
        describe("GPU-1", mig=1, used=600, total=81920),
        describe("MIG-1", "mig", total=10240, util=None, mig=None),
        describe("GPU-2", open=4),
        describe("GPU-3"),
    )
    node.leases.mkdir()
    (node.leases / "GPU-3.lock").mkdir()
    with locked(card_path(node.leases, "GPU-0")) as descriptor:
        write_holder(descriptor, "00007.tar")
        table = format_gpus(describe_gpus())
    head, *rows = table.splitlines()
    assert re.split("  +", head)[3:] == ["FREE/TOTAL GiB", "UTIL", "FOREIGN", "MIG PARENT", "LEASED BY"]
    rows = [row.split(maxsplit=7) for row in rows]
    assert rows[0][:7] == ["0", "GPU-0", "Fake", "59.4/80.0", "93%", "0", "-"]
    assert rows[0][7].startswith(f"pid {os.getpid()} on ") and "shard 00007.tar, since 20" in rows[0][7]
    assert rows[1][7].startswith("in MIG mode")
    assert rows[2] == ["1", "MIG-1", "Fake", "9.4/10.0", "-", "0", "GPU-1", "-"]
    assert rows[3] == ["-", "-", "-", "-/-", "-", "-", "-", "NVML cannot open it (Insufficient Permissions)"]
    assert "GPU-3.lock' cannot be opened (Is a directory)" in rows[4][7]


def test_no_gpu(node):
    assert format_gpus(describe_gpus()) == "The driver lists no GPU."
