import pytest
from support.tools import start_python

from embedders.builtin.light_torch import leave_out_compiler

COMPILER = '[name for name in ("torch._dynamo", "sympy") if name in sys.modules]'


def run(code: str) -> str:
    job = start_python(code)
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    return output.strip()


@pytest.mark.slow
def test_what_a_job_imports_and_computes_loads_no_compiler():
    code = f"""
import sys
import torch
import embedders.job.embed
from embedders import TimmImageEmbedder
TimmImageEmbedder("test_vit.r160_in1k").load_embedding_model("cpu")(torch.zeros(1, 3, 160, 160, dtype=torch.uint8))
print({COMPILER})
"""
    assert run(code) == "[]"
    assert run(f"import sys, torchvision\nprint({COMPILER})") != "[]", (
        "torchvision does not load it any more: drop this"
    )


@pytest.mark.slow
def test_the_compiler_is_there_when_somebody_compiles():
    code = """
import embedders.builtin.timm_embedder, torch, torchvision
print(torch.compile(torch.nn.Linear(2, 3), backend="eager")(torch.zeros(1, 2)).shape)
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).mean().item())
"""
    assert run(code).splitlines() == ["torch.Size([1, 3])", "1.0"]


def test_a_failed_import_leaves_no_stub_behind():
    code = """
import sys
from embedders.builtin.light_torch import leave_out_compiler
try:
    with leave_out_compiler():
        assert "torch._dynamo" in sys.modules
        raise ImportError
except ImportError:
    print("torch._dynamo" in sys.modules)
"""
    assert run(code) == "False"


@pytest.mark.slow
def test_a_compiler_that_is_loaded_stays():
    torch_compiler = pytest.importorskip("torch._dynamo")
    with leave_out_compiler():
        import torch._dynamo

        assert torch._dynamo is torch_compiler
