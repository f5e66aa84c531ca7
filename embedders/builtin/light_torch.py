"""Import of torchvision and timm without torch's compiler, which saves a third of the import time of a job.

torchvision 0.29 and timm 1.0 import `torch._dynamo` for one function each, which is needed only for compiled models.
Code that compiles a model imports the compiler then.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_NAMES = ("torch._dynamo", "torch._dynamo.utils")


@contextmanager
def leave_out_compiler() -> Iterator[None]:
    """Replace `torch._dynamo` by a stub with two functions while the block runs.

    Modules that are imported in the block keep these functions: `disable`, which should exclude a function from
    compilation, does nothing, and `is_compile_supported` calls the compiler's own function.
    """
    if any(name in sys.modules for name in _NAMES):
        yield
        return
    compiler: Any
    utils: Any
    compiler, utils = (ModuleType(name) for name in _NAMES)
    compiler.__path__ = []
    compiler.disable = _disable
    compiler.utils = utils
    utils.is_compile_supported = _is_compile_supported
    stubs = dict(zip(_NAMES, (compiler, utils), strict=True))
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


def _disable(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    return (lambda decorated: decorated) if function is None else function


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)
