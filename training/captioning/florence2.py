"""Florence-2 (arXiv 2311.06242): a small model that describes pictures, by Microsoft under the MIT licence.

Its processor in transformers needs torchvision, so the picture and the question are prepared here as it does it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoTokenizer, Florence2ForConditionalGeneration

from core.errors import BaseModelUnavailable
from training.device import precision
from training.families.weights import soundness

_QUESTION = "Describe in detail what is shown in the image."  # what the task <DETAILED_CAPTION> stands for
_IMAGE = "<image>"
_MOST_TOKENS = 128


class Florence2:
    """A loaded Florence-2. It knows no instructions: it describes the whole picture."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """folder: the result of `weights.locate`. Raises BaseModelUnavailable for weights that cannot be loaded."""
        self._device, self._dtype = device, precision(device)
        self.batch = 8 if device.type == "cuda" else 1
        try:
            soundness.check_files(folder, "model")
            kind: Any = Florence2ForConditionalGeneration
            network, report = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=self._dtype, output_loading_info=True
            )
            soundness.check_loaded(network, report)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            asked = json.loads((folder / "preprocessor_config.json").read_text())
            self._size = (int(asked["size"]["width"]), int(asked["size"]["height"]))
            self._tokens = int(asked["image_seq_length"])
            self._mean, self._std = (np.array(asked[name], np.float32) for name in ("image_mean", "image_std"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise BaseModelUnavailable(
                f"the captioner in {folder} cannot be loaded ({type(error).__name__}: {str(error)[:200]}): download it "
                "again"
            ) from error
        self._network = network.requires_grad_(False).eval().to(device)
        self._tokenizer = tokenizer
        self._most_tokens = min(network.generation_config.max_new_tokens or _MOST_TOKENS, _MOST_TOKENS)
        question = f"{_IMAGE * self._tokens}{tokenizer.bos_token}{_QUESTION}{tokenizer.eos_token}"
        self._question = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids.to(device)

    def caption(self, pictures: Sequence[Path], instruction: str) -> list[str]:
        """What it says of each picture."""
        del instruction
        pixels = torch.stack([self._pixels(path) for path in pictures]).to(self._device, self._dtype)
        with torch.inference_mode():
            said = self._network.generate(
                input_ids=self._question.expand(len(pictures), -1), pixel_values=pixels,
                max_new_tokens=self._most_tokens, num_beams=3, do_sample=False,
            )  # fmt: skip
        texts: list[str] = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return texts

    def _pixels(self, path: Path) -> torch.Tensor:
        """The picture as the network gets it: [3, height, width]."""
        with Image.open(path) as picture:
            resized = picture.convert("RGB").resize(self._size, Image.Resampling.BICUBIC)
        values = (np.asarray(resized, np.float32) / 255 - self._mean) / self._std
        return torch.from_numpy(values).permute(2, 0, 1)
