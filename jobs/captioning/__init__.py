"""Captions that Imprint has written: the stage `caption`, the application's captioner, and the owner's review.

`captioner.py` asks an application's captioner; `training/captioning/` is the one on training workers.
"""
