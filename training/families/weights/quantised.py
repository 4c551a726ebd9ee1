"""Frozen denoisers whose large layers are kept in 8 or 4 bits, by bitsandbytes (https://arxiv.org/abs/2305.14314).

Each family names its quantised layers: the linears of attention and feed-forward layers, nearly all of a transformer.
Embeddings, modulation, norms and the output are not quantised. A layer dequantises its weights in each forward and
backward pass and computes in the dtype of its input, so a sample's numbers depend on no other sample.
"""

import logging
import re
import sys
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BackendFailed
from training.options import Quantisation

_BLOCK = 64  # values that share one scale in nf4


def is_available() -> bool:
    """Whether bitsandbytes is installed."""
    return PathFinder.find_spec("bitsandbytes") is not None


def place(denoiser: nn.Module, layers: str, kind: Quantisation, device: torch.device) -> Any:
    """Move a frozen denoiser to its device. Unless `kind` is none, quantise the linears that `layers` matches.

    They are quantised one by one, so the device never holds the whole model in 16 bits. Raises BackendFailed if
    bitsandbytes is not installed.
    """
    if kind != "none":
        quantise(denoiser, layers, kind, device)
    return denoiser.to(device)


def linears(denoiser: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """The linears that can be quantised and whose full names match the regular expression `layers`, by name."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(layers, name) and not module.weight.numel() % _BLOCK
    }


def quantise(denoiser: nn.Module, layers: str, kind: Quantisation, device: torch.device) -> None:
    """Replace the linears that `layers` matches with ones in 8 or 4 bits on `device`. Raises BackendFailed."""
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
    """Allow the import of bitsandbytes, which `training.families` blocks."""
    if sys.modules.get("bitsandbytes", ...) is None:
        del sys.modules["bitsandbytes"]
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns about inference kernels


@cache
def _linear_8bit() -> Any:
    """The class of layers in 8 bits. Defined in a function because the import of bitsandbytes is delayed."""
    from bitsandbytes.autograd._functions import MatMul8bitFp
    from bitsandbytes.nn.modules import Linear8bitLt

    class Linear8bit(Linear8bitLt):
        """Weights in 8 bits, activations as they are. The library's own forward pass quantises activations too."""

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
        # On some CPUs the library repacks the weights in a pass without gradients, and cannot train with them after it.
        made.support_avx512bf16_for_cpu = False
    made.weight = type(made.weight)(layer.weight.data, requires_grad=False, **_kept(made.weight, kind))
    made.bias = None if layer.bias is None else nn.Parameter(layer.bias.data.to(device), requires_grad=False)
    made.weight = made.weight.to(device)  # this quantises
    if kind == "8bit":
        made.init_8bit_state()
    result: nn.Linear = made.eval()
    return result


def _kept(weight: Any, kind: Quantisation) -> dict[str, Any]:
    """The arguments of the library's parameter class, except its values."""
    if kind == "8bit":
        return {"has_fp16_weights": False}
    return {"quant_type": weight.quant_type, "compress_statistics": weight.compress_statistics}


def move(denoiser: nn.Module, device: torch.device) -> None:
    """Move the denoiser's weights, quantised or not, to `device`, one by one.

    If memory runs out, some are moved and others are not; call it again, or load the denoiser again.
    """
    for weights in (*denoiser.parameters(), *denoiser.buffers()):
        weights.data = weights.data.to(device)
    for module in denoiser.modules():
        if hasattr(module, "state"):  # a layer in 8 bits: a second reference to the weights, set at its next use
            module.state.CB = None  # type: ignore[union-attr]


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a linear [out, in] or a convolution [out, in, h, w], dequantised if necessary."""
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
