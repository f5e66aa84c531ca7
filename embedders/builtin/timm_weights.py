"""Loader of local weights for timm models: it runs no code from the file, and checks all names and shapes."""

import logging
import sys
from collections.abc import Callable, Sequence

from torch import nn

from embedders.builtin.light_torch import leave_out_compiler
from embedders.errors import EmbedderError
from embedders.reading.magic import describe_start

with leave_out_compiler():
    from timm.models import load_state_dict

log = logging.getLogger(__name__)

# Weights that only training uses.
_TRAINING = ("mask_token", "decoder_", "dino_head.", "ibot_head.")


def load_checkpoint(
    model: nn.Module,
    path: str,
    name: str,
    convert: Callable[[dict, nn.Module], dict],
    heads: str | Sequence[str] | None,
) -> None:
    """Load a file of weights into a model; the file must have all the weights of the model.

    Args:
        model: The model.
        path: `.safetensors`, or a state dict that torch saved.
        name: The model's name, for messages.
        convert: Renames the keys of the file; called with its state dict and the model.
        heads: Names of layers that the file may have although the model was built without them.

    Raises:
        EmbedderError: The file cannot be read, or does not fit.
    """
    try:
        # This reads .safetensors, and pickles with weights_only, so a checkpoint cannot run code.
        state_dict = load_state_dict(path, use_ema=True, weights_only=True)
    except Exception as error:
        raise EmbedderError(
            f"checkpoint_path {path!r} cannot be read: {str(error).splitlines()[0]}; it {describe_start(path)}; "
            "expected .safetensors, or a state dict saved by torch.save"
        ) from error
    state_dict = convert(state_dict, model)
    left_out = (*([heads] if isinstance(heads, str) else heads or ()), *_TRAINING)
    problem = _find_misfit(state_dict, model, left_out)
    if problem:
        state_dict = _convert_as_timm(state_dict, model)
        if _find_misfit(state_dict, model, left_out):
            raise EmbedderError(
                f"checkpoint_path {path!r} does not fit {name!r}: {problem}; expected timm's own names and shapes; "
                "rename them in a subclass's convert_state_dict"
            )
    unused = [key for key in state_dict if key not in model.state_dict()]
    if unused:
        log.info("%s: %d weights are not used by this model, such as %r", path, len(unused), unused[0])
    model.load_state_dict(state_dict, strict=False)


def _find_misfit(state_dict: dict, model: nn.Module, left_out: Sequence[str]) -> str | None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state_dict]
    if missing:
        return f"the file lacks {len(missing)} of the model's {len(wanted)} weights, such as {missing[0]!r}"
    extra = [key for key in state_dict if key not in wanted and not _is_part_of(key, left_out)]
    if extra:
        return f"{len(extra)} of the file's {len(state_dict)} weights are unknown to the model, such as {extra[0]!r}"
    for key in wanted:
        if state_dict[key].shape != wanted[key].shape:
            return f"{key!r} has the shape {tuple(state_dict[key].shape)}; the model's has {tuple(wanted[key].shape)}"
    return None


def _is_part_of(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name if name[-1] in "._" else f"{name}.") for name in names)


def _convert_as_timm(state_dict: dict, model: nn.Module) -> dict:
    """Convert weights from elsewhere or for another image size with timm's own function for downloaded weights."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return convert(dict(state_dict), model) if convert else state_dict
    except Exception:  # the function expects weights that it knows, and may raise anything for others
        log.debug("timm's own conversion failed", exc_info=True)
        return state_dict
