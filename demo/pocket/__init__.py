"""The pocket base model: a small Stable Diffusion 1.x, trained from scratch on pictures that this project draws.

`python -m demo.pocket --help`. The finished model lies in `model/`, with its card.
"""

from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parent / "model"
PIXELS = 64  # the side of its pictures

# The recipe of LoRAs on it, beside sd15's: it is narrow, and of a thousandth of Stable Diffusion's weights, so that a
# subject takes a larger share of them. Chosen on subjects to practise on (benchmarks/quality.py --practice).
RECIPE: dict[str, Any] = {
    "learning_rate": 6e-4,
    "optimization": {"loraplus_ratio": 1.5, "ema_decay": 0.99},
    "objective": {"weighting": "min_snr", "prior_share": 0.1},
}
