"""The demo: train a LoRA on ten pictures of a mascot, through the real pipeline, on this machine."""
