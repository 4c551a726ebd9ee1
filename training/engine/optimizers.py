"""The optimizer stack of each optimizer that a recipe may name."""

from training.engine.adamw8bit import AdamW8bit
from training.engine.optimizer import AdamW, Stack
from training.engine.prodigy import Prodigy

OPTIMIZERS: dict[str, type[Stack]] = {"adamw": AdamW, "adamw8bit": AdamW8bit, "prodigy": Prodigy}
