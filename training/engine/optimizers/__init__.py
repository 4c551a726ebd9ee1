"""The weights of all slots and their optimizers, one pass for all rows, and the learning-rate schedule."""
