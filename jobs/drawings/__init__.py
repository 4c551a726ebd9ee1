"""Drawings with the LoRA of a training, by a worker: a row with an owner, a price, a hold and a lease, like a training.

A drawing has a queue of its own for each family (`draw.sd15`), so it never holds a process that trainings wait for.
"""
