"""The dataset of one training: its prepared pictures, their captions, and a hash of both. Does not import torch."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from training.families.registry import FAMILIES
from training.spec import TrainSpec

VERSION = 1


@dataclass(frozen=True)
class ManifestExample:
    """One prepared picture: the SHA-256 of its PNG, its final caption and its size in pixels."""

    sha256: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Manifest:
    """All examples of a training, in the order of the request. Independent of the recipe."""

    examples: tuple[ManifestExample, ...]
    version: int = VERSION

    @property
    def buckets(self) -> dict[str, int]:
        """The number of pictures of each size, such as `512x768: 3`."""
        counted = Counter(f"{example.width}x{example.height}" for example in self.examples)
        return dict(sorted(counted.items()))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the canonical JSON: equal for the same pictures and captions in the same order."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted names, no spaces."""
        held = {
            "version": self.version,
            "examples": [asdict(example) for example in self.examples],
            "count": len(self.examples),
            "buckets": self.buckets,
        }
        return json.dumps(held, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse the output of `to_json`. Raises ValueError for anything else."""
        try:
            held = json.loads(text)
            if held["version"] != VERSION:
                raise ValueError(f"the manifest has version {held['version']!r}; expected {VERSION}")
            return cls(tuple(ManifestExample(**example) for example in held["examples"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not a manifest") from error


@dataclass(frozen=True)
class DatasetPicture:
    """A prepared picture for a manifest, with the caption from its owner, if any."""

    sha256: str
    width: int
    height: int
    caption: str | None = None


# Scripts that put no spaces between words, or attach endings to them: Thai, Lao, Burmese, Khmer, kana, Chinese
# characters, Hangul. A trigger word may begin and end anywhere in them.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"  # of a script that puts spaces between words


def caption_for(spec: TrainSpec, given: str | None) -> str:
    """The caption that a picture is trained with. It always contains the trigger word, or the word would learn nothing.

    If a given caption lacks the trigger word as a whole word, in any case, it is prepended. Without a caption, the
    result is "a photo of {trigger word} {class word}".
    """
    text = " ".join(unicodedata.normalize("NFC", given or "").split())
    if not text:
        return f"a photo of {spec.subject}"
    return text if find_trigger(spec, text) else with_trigger(spec, text)


def with_trigger(spec: TrainSpec, caption: str) -> str:
    """The caption with the trigger word in front of it."""
    return f"{spec.trigger_word}, {caption}"


def with_early_trigger(spec: TrainSpec, caption: str) -> str:
    """The caption with its trigger word where every text encoder of the family reads it, in front if need be.

    Without the base model's tokenizer: a token has at least a byte of text, and two tokens mark start and end.
    """
    trigger = find_trigger(spec, caption)
    sure_bytes = FAMILIES[spec.family].caption_tokens - 2
    if trigger is not None and len(caption[: trigger.end()].encode()) <= sure_bytes:
        return caption
    return with_trigger(spec, caption)


def find_trigger(spec: TrainSpec, caption: str) -> re.Match[str] | None:
    """Where the trigger word is in a caption, as a whole word and in any case."""
    return re.search(_whole(spec.trigger_word), caption, re.IGNORECASE)


def _whole(word: str) -> str:
    """A regular expression for a word that is no part of a longer one."""
    word = unicodedata.normalize("NFC", word)
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, word) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, word[-1:]) else ""
    return before + re.escape(word) + after


def class_caption(spec: TrainSpec, caption: str) -> str:
    """A caption with the class word in place of the trigger word.

    "a photo of sks dog" with trigger "sks" or "sks dog" and class "dog" gives "a photo of dog".
    """
    subject = _whole(spec.trigger_word)
    if spec.class_word:
        subject += rf"(\s+{_whole(spec.class_word)})?"
    text = re.sub(subject, lambda _: spec.class_word, caption, flags=re.IGNORECASE)
    return re.sub(r"\s+([,.])", r"\1", " ".join(text.split())).lstrip(",. ")


def build_manifest(spec: TrainSpec, pictures: Iterable[DatasetPicture]) -> Manifest:
    """The manifest of `pictures` in their order, with their final captions."""
    return Manifest(
        tuple(
            ManifestExample(
                picture.sha256,
                caption_for(spec, None if spec.captions == "template" else picture.caption),
                picture.width,
                picture.height,
            )
            for picture in pictures
        )
    )
