"""Drawing pictures with a finished LoRA on a ComfyUI server. Knows nothing of trainings, credits or the web."""
