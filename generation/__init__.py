"""Drawing with a finished LoRA on a generator that is not ours. Knows nothing of trainings, credits or the web."""
