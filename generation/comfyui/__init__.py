"""ComfyUI: put a LoRA where a server finds it, patch a workflow for it, submit, follow, fetch the pictures."""
