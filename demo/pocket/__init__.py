"""The pocket base model: a small Stable Diffusion 1.x, trained from scratch on pictures that this project draws.

`python -m demo.pocket --help`. The finished model lies in `model/`, with its card.
"""

from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parent / "model"
PIXELS = 64  # the side of its pictures

# Changes to sd15's recipe for LoRAs on this model: it has a thousandth of the weights of Stable Diffusion, so a subject
# needs a larger share of them. Chosen on the practice subjects (benchmarks/quality.py --practice).
RECIPE: dict[str, Any] = {
    "learning_rate": 6e-4,
    "optimization": {"loraplus_ratio": 1.5, "ema_decay": 0.99},
    "objective": {"weighting": "min_snr", "prior_share": 0.1},
}
