"""De-distilling training adapters: LoRAs that are merged into a few-step model while it is trained on.

A few-step model was distilled, and plain training destroys that. With such an adapter merged, the new LoRA fits the
few-step model. The LoRA file never contains the adapter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import BaseModelUnavailable, LoraInvalid
from training.families.family import Base
from training.lora import formats
from training.lora.reading import read_lora


def merge_adapter(transformer: Any, path: Path) -> int:
    """Add the LoRA in `path` to the transformer's weights, at strength 1; returns the number of layers changed.

    Raises BaseModelUnavailable if the file cannot be read or does not fit.
    """
    count = 0
    try:
        for layer, a, b in _adapter(transformer, path):
            change = b @ a
            if change.shape != layer.weight.shape or not change.isfinite().all():
                raise ValueError("a layer has another shape, or values that are not finite")
            layer.weight.add_(change.to(layer.weight))
            count += 1
    except (LoraInvalid, OSError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise BaseModelUnavailable(
            f"the training adapter {path} does not fit the base model ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    return count


def _adapter(transformer: Any, path: Path) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """The layers that a training adapter changes, each with its A [rank, in] and B [out, rank], scaled.

    Raises LoraInvalid for a file that is broken, or holds anything that would be lost.
    """
    lora = read_lora(path)
    formats.refuse_other(lora)
    for module in lora.modules.values():
        if module.magnitude is not None:
            raise LoraInvalid(f"{path.name} is a DoRA: a training adapter must be a LoRA")
        layer = transformer.get_submodule(module.name.module)
        a, b = (torch.from_numpy(part.floats().copy()) for part in (module.down, module.up))
        yield getattr(layer, "base_layer", layer), a, b * module.scale


@contextmanager
def as_used(base: Base) -> Iterator[None]:
    """Inside, the layers that the training adapter was merged into compute as without it.

    Subtracts the adapter's product from each output. No weight changes, so this also works with a quantised base and
    with recorded steps.
    """
    if base.training_adapter is None:
        yield
        return
    if base.adapter is None:
        base.adapter = [
            (layer, a.to(base.device, base.dtype), b.to(base.device, base.dtype))
            for layer, a, b in _adapter(base.denoiser, base.training_adapter)
        ]
    hooks = [layer.register_forward_hook(partial(_without, a, b)) for layer, a, b in base.adapter]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(a: Tensor, b: Tensor, _: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook: the layer's output without the adapter's product."""
    return output - functional.linear(functional.linear(inputs[0], a), b)
