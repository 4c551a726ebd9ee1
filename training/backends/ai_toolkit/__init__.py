"""Training on an ai-toolkit server. Does not import torch.

`server` is a client for its HTTP API, `work` has the operations of a training (submit, poll, collect, cancel, clear),
`config` turns a recipe into a job of the server, and `convert` turns its LoRA file into one of Imprint's.
"""
