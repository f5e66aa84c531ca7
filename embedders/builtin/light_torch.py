"""torchvision and timm without torch's compiler, which is a third of what a job would import.

torchvision 0.29 and timm 1.0 load `torch._dynamo` for one function each, which matters only once something is
compiled. Owns nothing else; whoever compiles a model loads the compiler then.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_NAMES = ("torch._dynamo", "torch._dynamo.utils")


@contextmanager
def leave_out_compiler() -> Iterator[None]:
    """Let the imports in this block find two functions in the place of `torch._dynamo`; afterwards it is as it was.

    What is imported meanwhile keeps these two: `disable`, which marks a function that is not to be compiled, marks
    none, and `is_compile_supported` asks the compiler itself.
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
