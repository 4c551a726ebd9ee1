"""Attention with its backward pass: softmax(q k^T / sqrt(d)) v over heads, https://arxiv.org/abs/1706.03762."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.engine.unet.layers import Back

aten: Any = torch.ops.aten


def attend(batch: int, heads: int, said: Sequence[Tensor], live: bool) -> tuple[Tensor, Back | None]:
    """Rows of query [B x T, C], key and value [B x S, C] to rows [B x T, C]; back to the gradients of all three."""
    q, k, v = (_split(one, batch, heads) for one in said)
    if q.device.type == "cpu":
        out, kept = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)

        def back(g: Tensor) -> tuple[Tensor, ...]:
            g = _split(g, batch, heads)
            made = aten._scaled_dot_product_flash_attention_for_cpu_backward(g, q, k, v, out, kept, 0.0, False)
            return tuple(_rows(one) for one in made)

        return _rows(out), back if live else None
    if not live:
        return _rows(functional.scaled_dot_product_attention(q, k, v)), None
    # Which kernel is the best depends on the card and the shapes: torch chooses, and knows the way back of its choice.
    with torch.enable_grad():
        inputs = [one.detach().requires_grad_() for one in (q, k, v)]
        out = functional.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])

    def back_through(g: Tensor) -> tuple[Tensor, ...]:
        return tuple(_rows(one) for one in torch.autograd.grad(out, inputs, _split(g, batch, heads)))

    return _rows(out.detach()), back_through


def _split(rows: Tensor, batch: int, heads: int) -> Tensor:
    """[B x T, C] to [B, heads, T, C / heads]."""
    return rows.view(batch, -1, heads, rows.shape[1] // heads).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """[B, heads, T, d] to [B x T, heads x d]."""
    batch, heads, length, depth = x.shape
    return x.transpose(1, 2).reshape(batch * length, heads * depth)
