"""The LoRA on a denoiser: attached with peft, begun from the job's seed, read out by diffusers' module names."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from core.errors import BaseModelUnavailable
from training.backends.randomness import generator
from training.safetensor import Array

NAME = "default"


class Adapter:
    """The trained part: for each target module, down `A` [rank, in] and up `B` [out, rank], float32 masters."""

    def __init__(self, denoiser: Any, targets: str, *, rank: int, alpha: float, seed: int) -> None:
        """Attach a LoRA to every module of `denoiser` that `targets` matches; at first it changes nothing (B = 0).

        The adapter of an earlier training on the same denoiser is begun anew if it has the same shape.
        """
        self.denoiser = denoiser
        kept = getattr(denoiser, "peft_config", {}).get(NAME)
        if kept is not None and (kept.r, kept.lora_alpha, kept.target_modules) != (rank, alpha, targets):
            denoiser.delete_adapters(NAME)
            kept = None
        if kept is None:
            self._attach(denoiser, targets, rank, alpha)
        layers = {name: module for name, module in denoiser.named_modules() if hasattr(module, "lora_A")}
        self.pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for place, name in enumerate(sorted(layers)):
            down, up = layers[name].lora_A[NAME], layers[name].lora_B[NAME]
            # bf16 adapters do not learn: updates below their last bit are lost (FINDINGS.md, section 2).
            down.to(torch.float32)
            up.to(torch.float32)
            down.weight.grad = up.weight.grad = None
            self._begin(down.weight, up.weight, generator(seed, "start", place))
            self.pairs[name] = (down.weight, up.weight)

    @staticmethod
    def _attach(denoiser: Any, targets: str, rank: int, alpha: float) -> None:
        # peft is typed for whole alphas and reckons with any.
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
        try:
            denoiser.add_adapter(config, NAME)
        except ValueError as error:  # peft finds none of the targets
            raise BaseModelUnavailable(f"the base model has no layers for a LoRA: {str(error)[:200]}") from error

    @staticmethod
    def _begin(down: nn.Parameter, up: nn.Parameter, chance: torch.Generator) -> None:
        """peft's default start, drawn from our seed: A uniform in ±1/sqrt(in) (kaiming with a = sqrt 5), B zero."""
        with torch.no_grad():
            bound = down.shape[1] ** -0.5
            down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=chance))
            up.zero_()

    def parameters(self) -> list[nn.Parameter]:
        """All masters in a fixed order: by module, down before up."""
        return [part for name in sorted(self.pairs) for part in self.pairs[name]]

    def names(self) -> list[str]:
        """A name for each of `parameters`, in the same order."""
        return [f"{name}.{end}" for name in sorted(self.pairs) for end in ("down", "up")]

    def is_finite(self) -> bool:
        """Whether every weight is a finite number; waits for the device."""
        return all(bool(torch.isfinite(part).all()) for part in self.parameters())


def pairs_of(weights: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """From arrays by the names of `Adapter.names` to (down, up) by module."""
    modules = sorted({name.rsplit(".", 1)[0] for name in weights})
    return {module: (weights[f"{module}.down"], weights[f"{module}.up"]) for module in modules}
