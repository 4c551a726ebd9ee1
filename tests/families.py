"""The families that tests run through, from the registry."""

from training.families.registry import FAMILIES, trained_here

# One for each module with code, and the tiny base model that it makes.
LOCAL = list({FAMILIES[name].code: name for name in reversed(trained_here())}.values())[::-1]
# Of those, the transformers, whose captions take turns.
FLOWS = [name for name in LOCAL if FAMILIES[name].denoiser == "transformer"]
