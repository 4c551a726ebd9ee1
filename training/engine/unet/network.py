"""diffusers' UNet2DConditionModel from end to end, by layers that know their way back; autograd sees one function."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.engine.adapters import Ports
from training.engine.compiler import Compiler
from training.engine.unet import fused
from training.engine.unet.blocks import Residual, Transformer
from training.engine.unet.known import why_unknown
from training.engine.unet.layers import PLAIN, Conv, Kit
from training.engine.unet.linear import Pass
from training.engine.unet.walk import Level, Walk
from training.families.family import Base

log = logging.getLogger(__name__)


def attach(base: Base, ports: Ports, compiler: Compiler | None = None) -> None:
    """Let `base` be run by our own pass, if its denoiser is a UNet whose every part is known; else it runs itself."""
    reason = why_unknown(base.denoiser)
    if reason is None:
        kit = PLAIN if compiler is None else fused.kit(compiler)
        base.own = Network(base.denoiser, ports, len(base.schedule.alphas), kit)
    else:
        log.info("the base model runs through diffusers' own module: it has %s", reason)


class Network:
    """Called as diffusers' UNet is, with an answer in a tuple; gradients flow to what the ports apply only."""

    def __init__(self, unet: Any, ports: Ports, times: int, kit: Kit = PLAIN) -> None:
        """times: how many times the noise schedule has."""
        self.unet, self.ports, self.kit = unet, ports, kit
        unet.to(memory_format=torch.channels_last)
        self._residuals: list[Any] = []  # diffusers' own
        self.enter = Conv(unet.conv_in)
        self.downs = [self._level(block, getattr(block, "downsamplers", None)) for block in unet.down_blocks]
        self.middle = self._level(unet.mid_block, None)
        self.ups = [self._level(block, getattr(block, "upsamplers", None)) for block in unet.up_blocks]
        self.norm, self.leave = kit.group_norm(unet.conv_norm_out, silu=True), Conv(unet.conv_out)
        self._learn_times(times)

    def _level(self, block: Any, samplers: Any) -> Level:
        residuals = []
        for layer in block.resnets:
            residuals.append(Residual(layer, len(self._residuals), self.kit))
            self._residuals.append(layer)
        transformers = [layer and Transformer(layer, self.kit) for layer in getattr(block, "attentions", ())]
        return Level(residuals, transformers, Conv(samplers[0].conv) if samplers else None)

    # ---- what time says ----

    def _learn_times(self, times: int) -> None:
        """Put the time projections of all residual blocks in one; where only the time is told, into a table of rows."""
        with torch.no_grad():
            self._weight = torch.cat([layer.time_emb_proj.weight for layer in self._residuals])
            self._bias = torch.cat([layer.time_emb_proj.bias for layer in self._residuals])
            self._widths = [len(layer.time_emb_proj.weight) for layer in self._residuals]
            self._table: Tensor | None = None
            if self.unet.config.addition_embed_type is None:
                self._table = self._said_of_time(torch.arange(times, device=self.unet.device), None)

    def _told(self, times: Tensor, context: Tensor, added: dict[str, Tensor] | None) -> list[Tensor]:
        """What time and the added conditions say to every residual block, [B, out, 1, 1] each."""
        with torch.no_grad():
            if self._table is not None:
                rows = self._table[times]
            else:
                kind = torch.empty(0, dtype=self.unet.dtype)  # it is asked for its dtype alone
                rows = self._said_of_time(times, self.unet.get_aug_embed(kind, context, added or {}))
            return list(torch.split(rows[:, :, None, None], self._widths, 1))

    def _said_of_time(self, times: Tensor, more: Tensor | None) -> Tensor:
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(times).to(unet.dtype))
        if more is not None:
            embedding = embedding + more
        return functional.linear(functional.silu(embedding), self._weight, self._bias)

    # ---- the pass ----

    def __call__(
        self,
        sample: Tensor,
        times: Tensor,
        context: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """sample [B, C, h, w], times [B], context [B, T, E] to what the network says, [B, C, h, w]."""
        assert not return_dict  # noqa: S101 - nobody asks for one
        told = self._told(times, context, added_cond_kwargs)
        pairs = self.ports.pairs or ()
        if not pairs or not torch.is_grad_enabled():
            now = Pass(self.ports, pairs, len(sample), learns=False)  # type: ignore[arg-type]
            with torch.no_grad():
                return (Walk(self, now, told, context).through(sample),)
        parts = [part for pair in pairs for part in pair]  # type: ignore[union-attr]
        said: Tensor = _Through.apply(self, sample, told, context, *parts)  # type: ignore[no-untyped-call]
        return (said,)


class _Through(torch.autograd.Function):
    """The whole network as one operation of autograd: from what the ports apply to what the network says."""

    @staticmethod
    def forward(ctx: Any, network: Network, sample: Tensor, told: Any, context: Tensor, *parts: Tensor) -> Tensor:
        del parts  # the ports have them; here they tell autograd what this depends on
        pairs: Any = network.ports.pairs
        is_lean = network.unet.mid_block.gradient_checkpointing  # of the whole network: `is_…` asks every module
        now = Pass(network.ports, pairs, len(sample), learns=True, recompute=is_lean)
        ctx.walk = Walk(network, now, told, context)
        said: Tensor = ctx.walk.through(sample)
        return said

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.walk.back(gradients[0])
        now = ctx.walk.now
        made = (now.gradients.get(place, (None,) * len(pair)) for place, pair in enumerate(now.adapters))
        return None, None, None, None, *(part for parts in made for part in parts)
