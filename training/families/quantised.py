"""Frozen denoisers whose large layers are kept in 8 or 4 bits, by bitsandbytes (https://arxiv.org/abs/2305.14314).

Each family names its quantised layers: the linears of attention and feed-forward layers, nearly all of a transformer.
Embeddings, modulation, norms and the output stay as they are. A layer computes in the dtype of its input
with weights that are dequantised for the moment, in the forward and in the backward pass, so a sample's numbers depend
on no other sample.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BackendFailed
from training.options import Quantisation

_BLOCK = 64  # values of nf4 that share one scale


def is_available() -> bool:
    """Whether bitsandbytes is installed."""
    return PathFinder.find_spec("bitsandbytes") is not None


def place(denoiser: nn.Module, layers: str, kind: Quantisation, device: torch.device) -> Any:
    """A frozen denoiser on its device, the linears that `layers` matches quantised if asked.

    They are quantised one by one: the device never holds the model in 16 bits. Raises BackendFailed without
    bitsandbytes.
    """
    if kind != "none":
        quantise(denoiser, layers, kind, device)
    return denoiser.to(device)


def linears(denoiser: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """The linears whose full names match the regular expression `layers` and that can be quantised, by name."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(layers, name) and not module.weight.numel() % _BLOCK
    }


def quantise(denoiser: nn.Module, layers: str, kind: Quantisation, device: torch.device) -> None:
    """Replace the linears that `layers` matches by ones in 8 or 4 bits on `device`. Raises BackendFailed."""
    if not is_available():
        raise BackendFailed(
            f"a base model in {kind} needs bitsandbytes, which this worker does not have: install it, or set "
            "IMPRINT_QUANTISE_BASE=none"
        )
    _import()
    for name, layer in linears(denoiser, layers).items():
        parent, _, last = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), last, _quantised(layer, kind, device))


def _import() -> None:
    """Let bitsandbytes be imported, which is kept from other libraries until now."""
    if sys.modules.get("bitsandbytes", ...) is None:
        del sys.modules["bitsandbytes"]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns of kernels for inference


@cache
def _linear_8bit() -> Any:
    """The class of all layers in 8 bits, made once bitsandbytes may be imported."""
    from bitsandbytes.autograd._functions import MatMul8bitFp
    from bitsandbytes.nn.modules import Linear8bitLt

    class Linear8bit(Linear8bitLt):
        """Weights of 8 bits and activations as they come. The library's own forward pass quantises those too."""

        def forward(self, x: Tensor) -> Tensor:
            self.state.CB = self.weight.data
            made: Tensor = MatMul8bitFp.apply(  # type: ignore[no-untyped-call]
                x, self.weight, None, self.bias, self.state
            )
            return made

    return Linear8bit


def _quantised(layer: nn.Linear, kind: Quantisation, device: torch.device) -> nn.Linear:
    from bitsandbytes.nn.modules import Linear4bit

    shape: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    made: Any
    if kind == "8bit":
        made = _linear_8bit()(layer.in_features, layer.out_features, has_fp16_weights=False, **shape)
    else:
        made = Linear4bit(  # type: ignore[no-untyped-call]
            layer.in_features, layer.out_features, compute_dtype=layer.weight.dtype, quant_type="nf4", **shape
        )
        # On some CPUs the library packs weights anew when there is no gradient, and could not train on them after it.
        made.support_avx512bf16_for_cpu = False
    made.weight = type(made.weight)(layer.weight.data, requires_grad=False, **_kept(made.weight, kind))
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.data.to(device), requires_grad=False)
    made.weight = made.weight.to(device)  # this quantises
    if kind == "8bit":
        made.init_8bit_state()
    result: nn.Linear = made.eval()
    return result


def _kept(weight: Any, kind: Quantisation) -> dict[str, Any]:
    """What the library's parameter is made with, beside its numbers."""
    if kind == "8bit":
        return {"has_fp16_weights": False}
    return {"quant_type": weight.quant_type, "compress_statistics": weight.compress_statistics}


@contextmanager
def parked(denoiser: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the denoiser's weights are in the host's memory instead of the device's. It must not be used there."""
    held = [*denoiser.parameters(), *denoiser.buffers()]
    for weights in held:
        weights.data = weights.data.to("cpu")
    for module in denoiser.modules():
        if hasattr(module, "state"):  # of 8 bits: a second reference to the weights
            module.state.CB = None  # type: ignore[union-attr]
    try:
        yield
    finally:
        for weights in held:
            weights.data = weights.data.to(device)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a linear [out, in] or a 1x1 convolution [out, in, 1, 1], dequantised if need be."""
    held: Any = layer
    weight: Any = held.weight
    made: Tensor = weight.detach()
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        made = dequantize_4bit(weight.data, weight.quant_state)
    elif type(weight).__name__ == "Int8Params":
        from bitsandbytes.functional import int8_vectorwise_dequant

        made = int8_vectorwise_dequant(weight.data, held.state.SCB)
    return made
