"""The optimizer stack of each optimizer that a recipe may name."""

from training.engine.optimizers.adamw8bit import AdamW8bit
from training.engine.optimizers.prodigy import Prodigy
from training.engine.optimizers.stack import AdamW, Stack

OPTIMIZERS: dict[str, type[Stack]] = {"adamw": AdamW, "adamw8bit": AdamW8bit, "prodigy": Prodigy}
