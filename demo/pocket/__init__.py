"""The pocket base model: a small Stable Diffusion 1.x, trained from scratch on pictures that this project draws.

`python -m demo.pocket --help`. The finished model lies in `model/`, with its card.
"""

from pathlib import Path

MODEL = Path(__file__).resolve().parent / "model"
PIXELS = 64  # the side of its pictures
