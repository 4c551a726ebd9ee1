"""What a layer with LoRAs says, one LoRA per slot, and its backward pass by hand."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Product(torch.autograd.Function):
    """x W^T + bias + (x A^T) B^T, and of DoRA the same without bias times 1 + excess, then bias.

    x [N, M, in], W [out, in], A [N, r, in], B [N, out, r], excess None or [N, 1, out]; no gradients for W and bias. By
    hand, because autograd would keep the LoRA's product in memory and add it in an operation of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, excess: Tensor | None
    ) -> Tensor:
        said = functional.linear(x, weight, bias if excess is None else None)
        if len(down) == 1:
            low = torch.mm(x[0], down[0].t())
            said[0].addmm_(low, up[0].t())
        else:
            low = torch.bmm(x, down.transpose(1, 2))
            said.baddbmm_(low, up.transpose(1, 2))
        if excess is None:
            ctx.save_for_backward(x, weight, down, up, low)
            return said
        ctx.save_for_backward(x, weight, down, up, low, excess, said)
        stretched = torch.addcmul(said, said, excess)
        return stretched if bias is None else stretched.add_(bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, down, up, low, *dora = ctx.saved_tensors
        (g,) = gradients
        wanted = ctx.needs_input_grad[0]  # not of the first layers: nothing below them learns
        dx = d_excess = None
        if dora:
            excess, said = dora
            d_excess = (g * said).sum(1, keepdim=True)
            g = torch.addcmul(g, g, excess)
        if len(down) == 1:
            flat = g[0]
            d_low = torch.mm(flat, up[0])
            d_up, d_down = torch.mm(flat.t(), low)[None], torch.mm(d_low.t(), x[0])[None]
            if wanted:
                dx = torch.mm(flat, weight).addmm_(d_low, down[0])[None]
        else:
            d_low = torch.bmm(g, up)
            d_up, d_down = torch.bmm(g.transpose(1, 2), low), torch.bmm(d_low.transpose(1, 2), x)
            if wanted:
                dx = torch.matmul(g, weight).baddbmm_(d_low, down)
        return dx, None, None, d_down, d_up, d_excess
