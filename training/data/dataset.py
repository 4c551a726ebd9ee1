"""The dataset of one training: its prepared pictures, their captions, and a hash of both. Does not import torch."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

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


def caption_for(spec: TrainSpec, given: str | None) -> str:
    """The caption that a picture is trained with. It always contains the trigger word, or the word would learn nothing.

    If a given caption lacks the trigger word as a whole word, in any case, it is prepended. Without a caption, the
    result is "a photo of {trigger word} {class word}".
    """
    text = " ".join((given or "").split())
    if not text:
        return " ".join(f"a photo of {spec.trigger_word} {spec.class_word}".split())
    has_it = re.search(rf"(?<!\w){re.escape(spec.trigger_word)}(?!\w)", text, re.IGNORECASE)
    return text if has_it else f"{spec.trigger_word}, {text}"


def class_caption(spec: TrainSpec, caption: str) -> str:
    """A caption with the class word in place of the trigger word.

    "a photo of sks dog" with trigger "sks" or "sks dog" and class "dog" gives "a photo of dog".
    """
    subject = rf"(?<!\w){re.escape(spec.trigger_word)}(?!\w)"
    if spec.class_word:
        subject += rf"(\s+{re.escape(spec.class_word)}(?!\w))?"
    text = re.sub(subject, lambda _: spec.class_word, caption, flags=re.IGNORECASE)
    return re.sub(r"\s+([,.])", r"\1", " ".join(text.split())).lstrip(",. ")


def build_manifest(spec: TrainSpec, pictures: Iterable[DatasetPicture]) -> Manifest:
    """The manifest of `pictures` in their order, with their final captions."""
    return Manifest(
        tuple(
            ManifestExample(picture.sha256, caption_for(spec, picture.caption), picture.width, picture.height)
            for picture in pictures
        )
    )
