"""What a tensor of a LoRA file is, by the end of its name: a matrix, a scale, or a part of another method."""

import re

# The two matrices of a module, in every form that a program writes.
PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
ALPHA = ".alpha"
DORA_SCALE = ".dora_scale"
MAGNITUDES = (DORA_SCALE, ".lora_magnitude_vector", ".lora_magnitude_vector.weight")

# Other methods than LoRA, by the tensors that only they have.
METHODS = {
    "LoHa": re.compile(r".*\.hada_[wt]\w+"),
    "LoKr": re.compile(r".*\.lokr_[wt]\w+"),
    "GLoRA": re.compile(r".*\.(a1|a2|b1|b2|bm)\.weight"),
    "OFT": re.compile(r".*\.(oft_\w+|oft_blocks|lora_oft\w*)"),
    "a Tucker-decomposed LoRA": re.compile(r".*\.lora_mid\.weight"),
    "IA3": re.compile(r".*\.on_input"),
    "full differences": re.compile(r".*\.(diff|diff_b|set_weight)"),
}
# What files may hold beside an adapter. Programs read some of these; Imprint reads none.
EXTRAS = {
    "text embeddings": re.compile(r"bundle_emb\..+|.*\b(emb_params|clip_[gl]|string_to_param\..+)"),
    "norm weights": re.compile(r".*\.(w_norm|b_norm)|.*norm\w*\.(weight|bias)"),
    "bias weights": re.compile(r".*\.bias(_weight)?"),
    "embedding matrices": re.compile(r".*\.lora_embedding_[AB](\.\w+)?"),
    "factors of its own scale": re.compile(r".*\.(scale|scalar|rank|network_dim|reshape_weight)|.*\.scale_weight"),
    "whole weights": re.compile(r".*\.weight"),
}


def split_matrix(key: str) -> tuple[str, str, str] | None:
    """The module's stem, its suffix and the suffix of its other matrix; None for a tensor that is no matrix."""
    for pair in PAIRS:
        for end, other in (pair, pair[::-1]):
            if key.endswith(end):
                return key.removesuffix(end), end, other
    return None


def method_of(key: str) -> str | None:
    """The other method that a tensor belongs to."""
    return next((name for name, pattern in METHODS.items() if pattern.fullmatch(key)), None)


def extra_of(key: str) -> str | None:
    """What a tensor beside an adapter is; None if that is unknown."""
    return next((name for name, pattern in EXTRAS.items() if pattern.fullmatch(key)), None)
