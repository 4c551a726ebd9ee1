"""A fake ComfyUI for tests and for trying out an application. It responds as a real one, but draws nothing.

It validates prompts, has a queue, a history and a websocket, lists files in folders, and reads the keys of LoRA files.
Its pictures show as text what would have been drawn.
"""
