"""The families and base models that this installation knows, by name. Does not import torch."""

from training.families.record import BaseModel, Family
from training.families.records import (
    chroma,
    flux1,
    flux2_klein,
    qwen_image,
    qwen_image21,
    rented,
    sd35,
    stable_diffusion,
    z_image,
)

FAMILIES: dict[str, Family] = {}
BASE_MODELS: dict[str, BaseModel] = {}  # those with a short name


def register(family: Family) -> None:
    """Add a family, and the short names of its base models."""
    FAMILIES[family.name] = family
    BASE_MODELS.update({base.name: base for base in family.base_models})


def trained_here() -> list[str]:
    """The names of the families that a worker can train on its own device."""
    return [name for name, family in FAMILIES.items() if family.code is not None]


for _family in (
    stable_diffusion.SD15,
    stable_diffusion.SDXL,
    z_image.FAMILY,
    flux2_klein.KLEIN_4B,
    flux2_klein.KLEIN_9B,
    qwen_image21.FAMILY,
    qwen_image.FAMILY,
    flux1.FAMILY,
    chroma.FAMILY,
    sd35.LARGE,
    sd35.MEDIUM,
    *rented.FAMILIES,
):
    register(_family)
