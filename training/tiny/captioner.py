"""A tiny Florence-2: real modules, small channels, random weights from a seed.

`python -m training.tiny.captioner OUT [--seed 0]`

It says the same words of the same picture, and other words of another one, but they describe nothing. Tests caption
with it: the real code on real modules, in a tenth of a second.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration, GenerationConfig, RobertaTokenizer

from training.tiny.folder import make_once
from training.tiny.words import WORDS, qwen_vocabulary

_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>")
_SIDE, _TOKENS = 64, 5  # 2 x 2 places, and one for the mean


def make(out: Path, seed: int = 0) -> Path:
    """Create a tiny captioner at `out`, atomically, unless it exists; returns `out`."""
    return make_once(Path(out), "preprocessor_config.json", seed, _write)


def _write(folder: Path) -> None:
    tokenizer = _tokenizer()
    network = Florence2ForConditionalGeneration(_config(tokenizer))
    # Only whole words, and no end before eight of them: random weights would say bytes, or nothing.
    said = {index for word in WORDS for index in tokenizer(f" {word}", add_special_tokens=False).input_ids}
    network.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        decoder_start_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[index for index in range(len(tokenizer)) if index not in {*said, tokenizer.eos_token_id}],
        min_new_tokens=8, max_new_tokens=12, no_repeat_ngram_size=2,
    )  # fmt: skip
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.ndim > 1 and "norm" not in name:
                weights.normal_(0, 0.5 / weights[0].numel() ** 0.5 * 2)  # larger than usual: pictures make a difference
    network.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "image_seq_length": _TOKENS,
            "size": {"height": _SIDE, "width": _SIDE},
        })
    )  # fmt: skip


def _tokenizer() -> Any:
    vocabulary, merges = qwen_vocabulary()
    entries = dict.fromkeys([*_MARKS, *vocabulary])
    numbered = {entry: index for index, entry in enumerate(entries)}
    return RobertaTokenizer(vocab=numbered, merges=cast(Any, merges), extra_special_tokens={"image_token": "<image>"})


def _config(tokenizer: Any) -> Florence2Config:
    return Florence2Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_config={
            "depths": [1, 1, 1, 1], "embed_dim": [16, 16, 32, 32], "num_heads": [1, 1, 2, 2],
            "num_groups": [1, 1, 2, 2], "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "max_position_embeddings": 256, "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None,
        },
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line: create a captioner and print its path."""
    parser = argparse.ArgumentParser(prog="python -m training.tiny.captioner", description="make a tiny captioner")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    given = parser.parse_args(arguments)
    print(make(given.out, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
