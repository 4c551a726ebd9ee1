"""Which GPU a family needs on a server, and how its base model is quantised on a given one.

Estimates: the weights, and 6 GiB for activations, the LoRA and CUDA. ai-toolkit loads the text encoders beside the
denoiser before it caches the captions. They lie near what its authors and users report: 24 GB for FLUX.1 in 8 bits, 24
GB for Qwen-Image in 3 bits, 32 GB in 8.
"""

import re
from collections.abc import Mapping
from typing import Any

from training.families.record import AiToolkit
from training.families.registry import FAMILIES

_GIB_PER_BILLION = 1e9 / 2**30  # one byte for each parameter
_WORKING_GIB = 6.0
_BYTES_16, _BYTES_8 = 2.0, 1.0
# A card with 24 GB reports about 23.6 GiB.
_CARD_GIB = 0.98


def usual_gib(family: str) -> float:
    """The memory of a card on which ai-toolkit trains a family by its defaults: most in 8 bits. 0: not known."""
    toolkit = FAMILIES[family].toolkit
    if toolkit is None or toolkit.billions is None:
        return 0.0
    denoiser, encoders = (
        _BYTES_8 if toolkit.model.get(name, False) else _BYTES_16 for name in ("quantize", "quantize_te")
    )
    return _needed(toolkit, denoiser, encoders)


def least_gib(family: str, base_model: str) -> float:
    """The same for the smallest card: with a few bits and an accuracy-recovery adapter, if the base model has one."""
    toolkit = FAMILIES[family].toolkit
    recovery = "" if toolkit is None or toolkit.billions is None else recovery_of(toolkit, base_model)
    if toolkit is None or not recovery:
        return usual_gib(family)
    return _needed(toolkit, _bits(recovery) / 8, _BYTES_8)


def disk_gb(family: str) -> int:
    """What the weights of a family take on a server's disk, in 16 bits. 0: not known."""
    toolkit = FAMILIES[family].toolkit
    return 0 if toolkit is None or toolkit.billions is None else round(sum(toolkit.billions) * _BYTES_16)


def quantisation(family: str, base_model: str, card_gib: float | None) -> Mapping[str, Any]:
    """Changes to the `model` section of a job for a card: not quantised if 16 bits fit, 3 bits if 8 do not.

    Without a known card, or for a family of unknown size, ai-toolkit's own defaults stand.
    """
    toolkit = FAMILIES[family].toolkit
    if card_gib is None or toolkit is None or toolkit.billions is None:
        return {}
    if card_gib >= _needed(toolkit, _BYTES_16, _BYTES_16):
        return {"quantize": False, "quantize_te": False, "low_vram": False} if "quantize" in toolkit.model else {}
    if not toolkit.model.get("quantize", False):
        return {}
    if card_gib < _needed(toolkit, _BYTES_8, _BYTES_8) and (recovery := recovery_of(toolkit, base_model)):
        return {"qtype": recovery}
    return {}


def recovery_of(toolkit: AiToolkit, base_model: str) -> str:
    """The bits and the accuracy-recovery adapter of a base model; empty if there is none."""
    variant = toolkit.variant(base_model)
    if variant is not None and "assistant_lora_path" in variant.model:
        return ""  # ai-toolkit takes one adapter at a time
    return variant.recovery if variant is not None and variant.recovery else toolkit.recovery


def _bits(recovery: str) -> float:
    found = re.match(r"uint(\d)\|", recovery)
    assert found is not None, recovery  # noqa: S101 - it is in a record
    return int(found[1])


def _needed(toolkit: AiToolkit, denoiser: float, encoders: float) -> float:
    """GiB for weights with so many bytes for each parameter."""
    assert toolkit.billions is not None  # noqa: S101 - the callers have looked
    weights = toolkit.billions[0] * denoiser + toolkit.billions[1] * encoders
    return (weights * _GIB_PER_BILLION + _WORKING_GIB) * _CARD_GIB
