"""A ComfyUI that draws nothing but answers as the real one does: for tests, and for trying out an application.

It validates prompts, keeps a queue, a history and a websocket, finds files in folders, and reads LoRA files as far as
their keys. Its pictures state what would have been drawn.
"""
