"""A forward and a backward pass of our own through diffusers' UNet: same weights, same numbers, a third of the work of a
host that launches it.

A step of a small model, or of a large one on a fast GPU, is bound by how many operations Python and autograd send, not
by their arithmetic. Here each layer knows its own backward pass, weights are frozen so that none of them has a gradient,
nothing is kept or reckoned below the first adapter, and autograd sees one function in all.
"""

from training.engine.unet.network import attach

__all__ = ["attach"]
