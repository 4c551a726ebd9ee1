"""Pictures to a LoRA file. Knows nothing of Celery, credits or the web; torch is imported only below this room."""

import os

# The libraries read these when they are first imported, so they are set before any can be. Ours is the log, not theirs:
# no progress bars in a worker's log, no warnings on optional packages, no report of what is loaded. All can be set
# otherwise.
for _name, _value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a fork
    # Segments that grow: pictures of several sizes leave no holes that are too small for the next.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}.items():
    os.environ.setdefault(_name, _value)
