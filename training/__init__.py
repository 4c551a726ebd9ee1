"""Training: from pictures to a LoRA file. Knows nothing of Celery, credits or the web; only this room imports torch."""

import os

# The libraries read these when they are first imported, so set them here. They keep progress bars, warnings about
# optional packages and loading reports out of a worker's log. Values set in the environment win.
for _name, _value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # tokenizer threads do not survive a fork
    # Segments that grow: batches of different sizes do not fragment the memory.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}.items():
    os.environ.setdefault(_name, _value)
