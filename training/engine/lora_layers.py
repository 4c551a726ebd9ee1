"""LoRA on a denoiser's linears and convolutions, with one LoRA for each slot of the step.

The modules are diffusers' own. Each targeted layer is wrapped under its own name, and the wrapped module, plain or
quantised, computes the base product. A batch has N x b samples, those of the first slot first, and each sample uses its
own slot's LoRA (https://arxiv.org/abs/2106.09685: y = W x + scale B A x). With DoRA (https://arxiv.org/abs/2402.09353)
every row of W + scale B A is scaled to a learnt length. Autograd does the backward pass.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import BaseModelUnavailable
from training.engine.layout import Layout, LoRA, Site
from training.options import Ranks


class LoRALayer(nn.Module):
    """A frozen linear or convolution with the LoRAs of all slots."""

    def __init__(self, layers: "LoRALayers", site: Site) -> None:
        super().__init__()
        self.base_layer, self._layers, self._site = site.layer, layers, site
        self.in_features, self.out_features = site.inputs, site.outputs
        self._is_plain = type(site.layer) in (nn.Linear, nn.Conv2d)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: diffusers' modules read its dtype."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x [N x b, ..., in] to [N x b, ..., out]; for a convolution [N x b, in, h, w] to [N x b, out, h, w]."""
        y: Tensor = self.base_layer(x)
        lora = self._layers.applied[self._site.place] if self._layers.applied else None
        if lora is None:
            return y
        if not self._site.is_convolution:
            return self._add(lora, self._low(lora, x), y)
        # Pixels as rows: no copy, because the memory is channels-last.
        low = self._low(lora, x.permute(0, 2, 3, 1)) if self._site.kernel == (1, 1) else self._convolved(lora, x)
        return self._add(lora, low, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _low(self, lora: LoRA, x: Tensor) -> Tensor:
        """A x of each slot, [N, rows, rank], for x [N x b, ..., in]."""
        slots = len(lora.lora_a)
        is_flat = x.dim() == 3 and len(x) == slots  # one sample per slot: needs no view and no backward pass of it
        return torch.bmm(x if is_flat else x.reshape(slots, -1, self.in_features), lora.lora_a.transpose(1, 2))

    def _convolved(self, lora: LoRA, x: Tensor) -> Tensor:
        """The convolution of x [N x b, channels, h, w] with each slot's A, [N, rows, rank]: a group for each slot."""
        layer, (slots, rank, _) = self.base_layer, lora.lora_a.shape
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - the site says so
        beside = x.reshape(slots, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        kernels = lora.lora_a.reshape(slots * rank, x.shape[1], *self._site.kernel)
        low = functional.conv2d(beside, kernels, None, layer.stride, layer.padding, layer.dilation, slots)
        return low.reshape(len(low), slots, rank, -1).permute(1, 0, 3, 2).reshape(slots, -1, rank)

    def _add(self, lora: LoRA, low: Tensor, y: Tensor) -> Tensor:
        """Add B times `low` of each slot to y [N x b, ..., out], the output of the base layer."""
        slots = len(lora.lora_b)
        is_flat = y.dim() == 3 and len(y) == slots
        rows = y if is_flat else y.reshape(slots, -1, self.out_features)
        # In place, but not for a quantised layer: its output is a view of memory that it keeps.
        add = rows.baddbmm_ if self._is_plain else rows.baddbmm
        made = add(low, lora.lora_b.transpose(1, 2))
        if lora.stretch is not None:  # it applies to the product, not to the bias
            made = torch.addcmul(made, made if self.bias is None else made - self.bias, lora.stretch)
        return made if is_flat else made.view(y.shape)


class LoRALayers:
    """All wrapped layers of one denoiser, and of text encoders, and the LoRAs that they currently apply."""

    def __init__(
        self, denoiser: nn.Module, targets: Mapping[str, str], text_encoders: Mapping[str, nn.Module] | None = None,
        text_targets: str = "",
    ) -> None:  # fmt: skip
        """Wrap every layer of the target sets, ordered by set, then those of the text encoders that are trained.

        targets: regular expressions over full module names. text_targets: the same for text encoders, whose names begin
        with the encoder's. Raises BaseModelUnavailable if a set has no layer.
        """
        self._targets = targets
        self.applied: Sequence[LoRA | None] | None = None  # by place; None: the frozen base without LoRA
        found = {
            name: module
            for name, module in denoiser.named_modules()
            if _fits(module) and any(re.fullmatch(pattern, name) for pattern in targets.values())
        }
        order = sorted(found, key=lambda name: (self._first_set(name), name))
        self.sites = [_site(name, found[name], place) for place, name in enumerate(order)]
        if not all(any(re.fullmatch(pattern, name) for name in found) for pattern in targets.values()):
            raise BaseModelUnavailable("the base model has no layers for a LoRA: is it of another family?")
        for name, site in zip(order, self.sites, strict=True):
            self._wrap(denoiser, name, site)
        for part, encoder in (text_encoders or {}).items():
            self._wrap_text_encoder(part, encoder, text_targets)

    def _wrap(self, network: nn.Module, name: str, site: Site) -> None:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, LoRALayer(self, site))

    def _wrap_text_encoder(self, part: str, encoder: nn.Module, targets: str) -> None:
        """Wrap the targeted layers of a text encoder. transformers names some without `text_model`, files do not."""
        inside = "" if hasattr(encoder, "text_model") else "text_model."
        found = {f"{part}.{inside}{name}": name for name, module in encoder.named_modules() if _fits(module)}
        for full in sorted(full for full in found if re.fullmatch(targets, full)):
            site = replace(_site(full, encoder.get_submodule(found[full]), len(self.sites)), is_text=True)
            self.sites.append(site)
            self._wrap(encoder, found[full], site)

    def _first_set(self, name: str) -> int:
        """The index of the first target set with the layer."""
        return next(place for place, pattern in enumerate(self._targets.values()) if re.fullmatch(pattern, name))

    def layout(self, targets: str, ranks: Ranks, *, dora: bool = False, text_encoder: bool = False) -> Layout:
        """The layout of LoRAs of (padded) `ranks` on one target set, and on the text encoders if asked.

        Layers with a rank of their own are last, but for those of text encoders.
        """
        pattern = self._targets[targets]
        sites = [site for site in self.sites if not site.is_text and re.fullmatch(pattern, site.name)]
        if ranks.spatial is not None:
            sites.sort(key=lambda site: site.is_spatial)
        sites += [site for site in self.sites if site.is_text and text_encoder]
        return Layout(sites, ranks, dora=dora, places=len(self.sites))

    @contextmanager
    def applying(self, loras: Sequence[LoRA | None] | None) -> Iterator[None]:
        """Inside, the layers apply these LoRAs, by place; None: the frozen base without LoRA."""
        before, self.applied = self.applied, loras
        try:
            yield
        finally:
            self.applied = before


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    )


def _site(name: str, layer: nn.Module, place: int) -> Site:
    # The weight of a quantised layer has another shape, so use the layer's attributes.
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        return Site(name, layer.in_channels * height * width, layer.out_channels, True, place, layer, (height, width))
    assert isinstance(layer, nn.Linear)  # noqa: S101 - see `_fits`
    return Site(name, layer.in_features, layer.out_features, False, place, layer)
