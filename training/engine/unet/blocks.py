"""Residual and transformer blocks of a UNet, put together from layers that know their way back."""

from typing import Any

from torch import Tensor

from training.engine.unet.attention import attend
from training.engine.unet.layers import PLAIN, Back, Conv, Kit, Norm, joined
from training.engine.unet.linear import Beside, Linear, Pass


class Residual:
    """diffusers' ResnetBlock2D."""

    def __init__(self, block: Any, place: int, kit: Kit = PLAIN) -> None:
        self.norm_in, self.conv_in = kit.group_norm(block.norm1, silu=True), Conv(block.conv1)
        self.norm_out, self.conv_out = kit.group_norm(block.norm2, silu=True), Conv(block.conv2)
        self.aside = None if block.conv_shortcut is None else Conv(block.conv_shortcut)
        self.place = place  # among all residual blocks

    def __call__(self, x: Tensor, told: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        """x [B, C, h, w]; `told` [B, out, 1, 1] is what the time says to this block."""
        h, back_1 = self.norm_in(x, live)
        h, back_2 = self.conv_in(h, live)
        h, back_3 = self.norm_out(h, live, told)
        h, back_4 = self.conv_out(h, live)
        aside, back_aside = (x, None) if self.aside is None else self.aside(x, live)
        h.add_(aside)
        if not live:
            return h, None
        way = joined([back_2, back_3, back_4])
        assert way is not None and back_1 is not None  # noqa: S101, PT018 - all four are there
        return h, lambda g: back_1(way(g), g if back_aside is None else back_aside(g))


class Attention:
    """diffusers' Attention over rows x [B x T, C] themselves, or over constant rows of a context [B x S, E]."""

    def __init__(self, block: Any, *, is_self: bool) -> None:
        query, key, value = (Linear(layer) for layer in (block.to_q, block.to_k, block.to_v))
        self.query = None if is_self else query
        self.heard = Beside([query, key, value] if is_self else [key, value])
        self.out, self.heads = Linear(block.to_out[0]), block.heads

    def __call__(self, now: Pass, x: Tensor, context: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        """What attention says of x, and the way back to x."""
        if self.query is None:
            said, back_heard = self.heard(now, x, live)
            back_query = None
        else:
            query, back_query = self.query(now, x, live)
            heard, back_heard = self.heard(now, context, False)
            said = [query, *heard]
        inside = back_heard is not None or back_query is not None
        seen, back_seen = attend(now.batch, self.heads, said, inside)
        out, back_out = self.out(now, seen, inside)
        if back_out is None or back_seen is None:
            return out, back_out

        def back(g: Tensor) -> Tensor | None:
            made = back_seen(back_out(g))
            if self.query is None:
                return back_heard(made)  # type: ignore[misc, no-any-return]
            if back_heard is not None:
                back_heard(made[1:])
            return back_query(made[0]) if back_query is not None else None

        return out, back


class TransformerBlock:
    """diffusers' BasicTransformerBlock: attention to itself, attention to the context, feed-forward."""

    def __init__(self, block: Any, kit: Kit = PLAIN) -> None:
        self.norms = [kit.layer_norm(norm) for norm in (block.norm1, block.norm2, block.norm3)]
        self.attentions = [Attention(block.attn1, is_self=True), Attention(block.attn2, is_self=False)]
        self.rise, self.gated, self.fall = Linear(block.ff.net[0].proj), kit.gated, Linear(block.ff.net[2])

    def __call__(self, now: Pass, x: Tensor, context: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        """x rows [B x T, C]."""
        said, ways = None, []
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            x, h, back_norm = norm(x, said, live)
            said, back_branch = attention(now, h, context, live)
            ways.append(_around(back_norm, back_branch))
            live = live or ways[-1] is not None
        x, h, back_norm = self.norms[2](x, said, live)
        h, back_rise = self.rise(now, h, live)
        h, back_gate = self.gated(h, back_rise is not None)
        said, back_fall = self.fall(now, h, back_gate is not None)
        ways.append(_around(back_norm, joined((back_rise, back_gate, back_fall))))
        return said.add_(x), joined(ways)


def _around(back_norm: Norm | None, back_branch: Back | None) -> Back | None:
    """The way back through a branch with a norm before it, and past both; of the branch alone where none is below."""
    if back_norm is None or back_branch is None:
        return back_branch
    return lambda g: back_norm(back_branch(g), g)


class Transformer:
    """diffusers' Transformer2DModel over the pixels of a picture."""

    def __init__(self, block: Any, kit: Kit = PLAIN) -> None:
        self.norm = kit.group_norm(block.norm, silu=False)
        self.enter, self.leave = Linear(block.proj_in), Linear(block.proj_out)
        self.blocks = [TransformerBlock(one, kit) for one in block.transformer_blocks]

    def __call__(self, now: Pass, x: Tensor, context: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        """x [B, C, h, w]; context rows [B x S, E]."""
        batch, channels, height, width = x.shape
        h, back_norm = self.norm(x, live)
        h, back_enter = self.enter(now, h.permute(0, 2, 3, 1).reshape(-1, channels), live)
        ways = [back_enter]
        for block in self.blocks:
            h, way = block(now, h, context, any(ways))
            ways.append(way)
        h, back_leave = self.leave(now, h, any(ways))
        said = h.view(batch, height, width, channels).permute(0, 3, 1, 2).add_(x)
        rows = joined([*ways, back_leave])
        if rows is None:
            return said, None

        def back(g: Tensor) -> Tensor | None:
            made = rows(g.permute(0, 2, 3, 1).reshape(-1, channels))
            if back_norm is None:
                return None
            return back_norm(made.view(batch, height, width, channels).permute(0, 3, 1, 2), g)  # type: ignore[no-any-return]

        return said, back
