"""Which stack each optimizer of a recipe is."""

from training.engine.optimizer import AdamW, Stack
from training.engine.prodigy import Prodigy
from training.engine.quantised import AdamW8bit

STACKS: dict[str, type[Stack]] = {"adamw": AdamW, "adamw8bit": AdamW8bit, "prodigy": Prodigy}
