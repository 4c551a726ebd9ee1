"""The demo: ten pictures of a mascot become a LoRA, through the real chain, on this machine alone."""
