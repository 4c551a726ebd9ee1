"""LoRA files: formats, tensor names, metadata, inspection and conversion."""
