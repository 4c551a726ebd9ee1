"""The memory format of a frozen denoiser, and the layers that compute in float32 on a 16-bit base."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def lay_out(denoiser: nn.Module) -> None:
    """Convert convolution weights to channels-last memory, and group norms of a 16-bit base to float32."""
    if any(isinstance(module, nn.Conv2d) for module in denoiser.modules()):
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in denoiser.modules():
        if isinstance(module, nn.GroupNorm) and module.weight.dtype != torch.float32:
            module.__class__ = Float32GroupNorm
            module.float()


class Float32GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 with input and output in the dtype of the base.

    CUDA's kernel for 16-bit inputs rounds means and deviations to 16 bits.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
