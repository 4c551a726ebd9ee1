"""Parts of ai-toolkit's jobs that most of its architectures share: the defaults of its web page (options.tsx)."""

from typing import Any

FLOW: dict[str, Any] = {"noise_scheduler": "flowmatch", "content_or_style": "balanced", "cache_text_embeddings": True}
FLOW_SAMPLE: dict[str, Any] = {"sampler": "flowmatch", "guidance_scale": 4.0, "sample_steps": 25}
# On a large card the job is not quantised after all, see training/backends/ai_toolkit/cards.py.
QUANTISED: dict[str, Any] = {"quantize": True, "qtype": "qfloat8", "quantize_te": True, "qtype_te": "qfloat8"}
