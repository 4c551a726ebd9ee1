"""The options of a recipe in the words of the page: the label of each, and its value."""

from collections.abc import Sequence
from typing import Any

from training.spec import GROUPS
from web.pages.texts import gettext, number

# Labels by the name of the option in requests, which the page shows beside them.
OPTIONS = {
    "base_model": "Base model",
    "trigger_word": "Trigger word",
    "class_word": "What it is",
    "rank": "Rank",
    "alpha": "Alpha",
    "optimizer": "Optimizer",
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
    "resolution": "Resolution",
    "aspect_buckets": "Shapes of the pictures",
    "epochs": "Epochs",
    "max_steps": "Steps",
    "seed": "Seed",
    "backend": "Trained by",
    "captions": "Captions",
    "learns": "What it learns",
    "checkpoint_every": "Epochs between checkpoints",
    "keep_checkpoints": "Keep every checkpoint",
    "adapter.targets": "Layers with a LoRA",
    "adapter.rslora": "Rank-stabilized scale",
    "adapter.dora": "Separate magnitudes (DoRA)",
    "adapter.conv_rank": "Rank of convolutions",
    "adapter.conv_alpha": "Alpha of convolutions",
    "adapter.text_encoder": "Text encoders too",
    "optimization.schedule": "Schedule",
    "optimization.warmup_steps": "Warm-up steps",
    "optimization.loraplus_ratio": "LoRA+ ratio",
    "optimization.weight_decay": "Weight decay",
    "optimization.max_grad_norm": "Largest gradient norm",
    "optimization.text_encoder_learning_rate": "Learning rate of text encoders",
    "optimization.ema_decay": "Decay of averaged weights",
    "objective.weighting": "Weighting of noise levels",
    "objective.noise_offset": "Noise offset",
    "objective.prior_weight": "Weight of prior preservation",
    "objective.prior_share": "Share of prior preservation",
    "objective.masked": "Masks",
    "data.caption_dropout": "Caption dropout",
    "data.flip": "Mirrored pictures too",
    "data.resolutions": "Several resolutions",
    "validation.held_out": "Held-out pictures",
    "validation.every_epochs": "Epochs between validations",
    "validation.patience": "Patience",
    "validation.keep_best": "Deliver the best",
    "validation.previews": "Sample prompts",
}

# What the absence of a value means.
OPEN = {"seed": "a new one each time", "learns": "by what it is", "max_steps": "by the epochs"}
# Where the docs tell more of an option: the page and its heading. Of a group, the heading has its name.
DOCS = {
    "": ("task", "arguments"),
    "checkpoint_every": ("task", "checkpoints"),
    "keep_checkpoints": ("task", "checkpoints"),
    "learns": ("pictures", "captions-written-for-you"),
    **{group: ("recipe", group) for group in GROUPS},
}


def docs_link(name: str, docs_url: str | None) -> str | None:
    """Where the docs tell more of an option. `docs_url`: the setting IMPRINT_WEB_DOCS_URL; None without it."""
    group, dot, _ = name.partition(".")
    page, heading = DOCS.get(name) or DOCS[group if dot else ""]
    return None if docs_url is None else f"{docs_url.replace('{page}', page)}#{heading}"


def option(name: str) -> str:
    """The label of an option; its name, if it has none."""
    return gettext(OPTIONS[name]) if name in OPTIONS else name


def value(given: Any, name: str = "") -> str:
    """The value of an option in the language of the request. Names such as `adamw` are those of requests.

    `name`: of the option, for what its absence means.
    """
    if given is None and name in OPEN:
        return gettext(OPEN[name])
    if isinstance(given, bool):
        return gettext("yes") if given else gettext("no")
    if isinstance(given, float):
        return number(given, "g")
    if isinstance(given, int):
        return number(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return "; ".join(map(value, given)) or gettext("none")
    return gettext("none") if given is None else str(given)


def listed(parts: Sequence[str]) -> str:
    """Several names as a phrase: `a`, `a and b`, `a, b and c`."""
    *first, last = parts
    return gettext(" and ").join([gettext(", ").join(first), last]) if first else last
