"""ComfyUI: install a LoRA on a server, patch a workflow to use it, submit it and download the pictures."""
