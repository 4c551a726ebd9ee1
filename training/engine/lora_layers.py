"""LoRA on a denoiser's linears and 1x1 convolutions, with one LoRA for each slot of the step.

The modules stay diffusers' own. Each targeted layer is wrapped under its own name, and the wrapped module makes the
base product, whatever it is: plain or quantised. A batch of N x b samples holds those of the first slot first, and each
sample meets its own slot's LoRA (https://arxiv.org/abs/2106.09685: y = W x + scale B A x). With DoRA
(https://arxiv.org/abs/2402.09353) every row of W + scale B A is brought to a length that is learnt. Autograd makes the
backward pass.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.errors import BaseModelUnavailable
from training.engine.layout import Layout, LoRA, Site


class LoRALayer(nn.Module):
    """A frozen linear or 1x1 convolution, and the LoRA of every slot beside it."""

    def __init__(self, layers: "LoRALayers", site: Site) -> None:
        super().__init__()
        self.base_layer, self._layers, self._site = site.layer, layers, site
        self.in_features, self.out_features = site.inputs, site.outputs
        self._is_plain = type(site.layer) in (nn.Linear, nn.Conv2d)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, which diffusers' modules ask for its dtype."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x [N x b, ..., in] to [N x b, ..., out]; of a convolution [N x b, in, h, w] to [N x b, out, h, w]."""
        y: Tensor = self.base_layer(x)
        lora = self._layers.applied[self._site.place] if self._layers.applied else None
        if lora is None:
            return y
        if self._site.is_convolution:  # pixels as rows, without a copy: its memory is channels-last
            return self._add(lora, x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self._add(lora, x, y)

    def _add(self, lora: LoRA, x: Tensor, y: Tensor) -> Tensor:
        """y [N x b, ..., out], which the base layer made of x, and each slot's LoRA."""
        slots = len(lora.lora_a)
        is_flat = x.dim() == 3 and len(x) == slots  # one sample for each slot: no view is needed, nor its backward pass
        rows = y if is_flat else y.reshape(slots, -1, self.out_features)
        low = torch.bmm(x if is_flat else x.reshape(slots, -1, self.in_features), lora.lora_a.transpose(1, 2))
        # In place where y is the layer's alone: a quantised layer's is a view of what it keeps.
        add = rows.baddbmm_ if self._is_plain else rows.baddbmm
        made = add(low, lora.lora_b.transpose(1, 2))
        if lora.stretch is not None:  # of the product alone, without the bias
            made = torch.addcmul(made, made if self.bias is None else made - self.bias, lora.stretch)
        return made if is_flat else made.view(y.shape)


class LoRALayers:
    """All wrapped layers of one denoiser, and the LoRAs that they apply at the moment."""

    def __init__(self, denoiser: nn.Module, targets: Mapping[str, str]) -> None:
        """Wrap every layer of the target sets, regular expressions over full names; those of the first come first.

        Raises BaseModelUnavailable if a set has no layer.
        """
        self._targets = targets
        self.applied: Sequence[LoRA | None] | None = None  # by place; None: the denoiser is the frozen base's own
        found = {
            name: module
            for name, module in denoiser.named_modules()
            if _fits(module) and any(re.fullmatch(pattern, name) for pattern in targets.values())
        }
        order = sorted(found, key=lambda name: (self._first_set(name), name))
        self.sites = [_site(name, found[name], place) for place, name in enumerate(order)]
        if not all(any(re.fullmatch(pattern, name) for name in found) for pattern in targets.values()):
            raise BaseModelUnavailable("the base model has no layers for a LoRA: is it of another family?")
        for site in self.sites:
            parent, _, last = site.name.rpartition(".")
            setattr(denoiser.get_submodule(parent), last, LoRALayer(self, site))

    def _first_set(self, name: str) -> int:
        """The place of the first target set that a layer is in."""
        return next(place for place, pattern in enumerate(self._targets.values()) if re.fullmatch(pattern, name))

    def layout(self, targets: str, rank: int, *, dora: bool = False) -> Layout:
        """The layout of LoRAs on one target set."""
        sites = [site for site in self.sites if re.fullmatch(self._targets[targets], site.name)]
        return Layout(sites, rank, dora=dora, places=len(self.sites))

    @contextmanager
    def applying(self, loras: Sequence[LoRA | None] | None) -> Iterator[None]:
        """Inside, the layers apply these LoRAs, by place; with None the denoiser is the frozen base's own."""
        before, self.applied = self.applied, loras
        try:
            yield
        finally:
            self.applied = before


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} == set(module.stride) and module.groups == 1
    )


def _site(name: str, layer: nn.Module, place: int) -> Site:
    # From the layer's own numbers: a quantised weight has a shape of its own.
    if isinstance(layer, nn.Conv2d):
        return Site(name, layer.in_channels, layer.out_channels, True, place, layer)
    assert isinstance(layer, nn.Linear)  # noqa: S101 - all else does not fit
    return Site(name, layer.in_features, layer.out_features, False, place, layer)
