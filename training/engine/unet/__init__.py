"""A forward and a backward pass of our own through diffusers' UNet: the same weights and numbers, half the work for
whoever launches it.

A step of a small model, or of a large one on a fast GPU, is bound by how many operations Python and autograd send, not
by their arithmetic. Here each layer knows its own backward pass, frozen weights have no gradient, nothing is kept or
reckoned below the first adapter, and autograd sees one function in all.
"""

from training.engine.unet.network import attach

__all__ = ["attach"]
