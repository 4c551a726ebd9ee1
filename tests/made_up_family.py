"""A family that no other file names: Stable Diffusion's network under names, a price and a recipe of its own."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from training.families import registry
from training.families.record import BaseModel, Family, Price
from training.families.records.stable_diffusion import SD15

MADE_UP = dataclasses.replace(
    SD15,
    name="made-up",
    title="Made up",
    base_models=(
        BaseModel("made-up-1", "made-up", "nobody/made-up", "Made up 1", "It is not there.", "MUP-1.0", "no cats"),
    ),
    recipe=SD15.recipe | {"rank": 6, "alpha": 6.0, "resolution": 64},
    price=Price(77, 64),
    pipeline="MadeUpPipeline",
    lora=dataclasses.replace(SD15.lora, is_of=lambda _: False, declared=("made-up",), version="made-up-1"),
    single_file=None,
    toolkit=None,
)
# Without code it trains only on rented GPUs.
FAR_AWAY = dataclasses.replace(MADE_UP, code=None, toolkit=SD15.toolkit)


@contextmanager
def registered(family: Family) -> Iterator[None]:
    """Inside, the family is known."""
    registry.register(family)
    try:
        yield
    finally:
        del registry.FAMILIES[family.name]
        for base in family.base_models:
            del registry.BASE_MODELS[base.name]
