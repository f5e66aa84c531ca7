"""Loads the model of an embedder or a classifier, and finds and hashes its weights."""

import hashlib
import inspect
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from embedders.errors import EmbedderError, TarquetError
from embedders.gpu.failures import explain_failure
from embedders.job.locate import require_same_folder

log = logging.getLogger(__name__)


def load_model(owner: Any, method: str, device: str) -> tuple[Callable[[Any], torch.Tensor], str | None]:
    """Load the model of an embedder or classifier by this method and hash its weights, once per device.

    Returns:
        The model and the hash of its weights, `None` if it has no weights that can be found.
    """
    models = owner.__dict__.setdefault("_loaded_models", {})
    if device not in models:
        start = perf_counter()
        try:
            with require_same_folder(f"{owner.model_name}: {method}"):
                model = getattr(owner, method)(device)
            if not callable(model):
                raise EmbedderError(
                    f"{owner.model_name}: {method} returned a {type(model).__name__}; expected a function of a "
                    "batch; return the model"
                )
            if isinstance(model, torch.nn.Module):
                model.eval()  # else, by dropout and batch statistics, a vector depends on the rest of the batch
            models[device] = model, hash_weights(model)  # reads from the device, so it may find the device lost
        except TarquetError:
            raise
        except Exception as error:
            raise explain_failure(error, f"{owner.model_name}: {method}", device) from error
        for note in getattr(owner, "notes", ()):  # a classifier has none
            log.warning("%s", note)
        log.info("loaded %s on %s in %.1f s", owner.model_name, device, perf_counter() - start)
    return models[device]


def hash_weights(model: Callable) -> str | None:
    """Return the SHA-256 of the names and values of a model's weights.

    It is `None` if no `torch.nn.Module` is found (an ONNX session, a plain function).
    """
    modules = find_modules(model)
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, torch.Tensor):
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if modules else None


def find_modules(model: Callable) -> list[torch.nn.Module]:
    """Return the torch modules of a model: itself, its attributes, a function's closure, a method's object."""
    candidates = [model, *getattr(model, "__dict__", {}).values()]
    if inspect.isfunction(model):
        candidates += inspect.getclosurevars(model).nonlocals.values()
    modules = [candidate for candidate in candidates if isinstance(candidate, torch.nn.Module)]
    if inspect.ismethod(model):
        owner = model.__self__
        owned = [owner, *getattr(owner, "__dict__", {}).values()]
        # A module without weights is not part of the model; it may be a transform for `preprocess`.
        modules += [module for module in owned if isinstance(module, torch.nn.Module) and module.state_dict()]
    return modules
