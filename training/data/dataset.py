"""The dataset of one training: which prepared pictures, with which captions, and a hash of both. No torch in here."""

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
    """One prepared picture by the SHA-256 of its PNG, with its final caption and its size in pixels."""

    sha256: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Manifest:
    """All examples of a training, in the order that they were given in. Holds nothing of the recipe."""

    examples: tuple[ManifestExample, ...]
    version: int = VERSION

    @property
    def buckets(self) -> dict[str, int]:
        """How many pictures there are of each size, as `512x768: 3`."""
        counted = Counter(f"{example.width}x{example.height}" for example in self.examples)
        return dict(sorted(counted.items()))

    @property
    def sha256(self) -> str:
        """Of the canonical JSON: the same pictures and captions in the same order, the same hash."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical: sorted names, no spaces."""
        held = {
            "version": self.version,
            "examples": [asdict(example) for example in self.examples],
            "count": len(self.examples),
            "buckets": self.buckets,
        }
        return json.dumps(held, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Back from `to_json`. Raises ValueError for anything else."""
        try:
            held = json.loads(text)
            if held["version"] != VERSION:
                raise ValueError(f"a manifest of version {held['version']!r}, {VERSION} is read")
            return cls(tuple(ManifestExample(**example) for example in held["examples"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not a manifest") from error


@dataclass(frozen=True)
class DatasetPicture:
    """A prepared picture on its way into a manifest; `caption` is what its owner said of it, if anything."""

    sha256: str
    width: int
    height: int
    caption: str | None = None


def caption_for(spec: TrainSpec, given: str | None) -> str:
    """The caption that a picture is trained with: it always has the trigger word, or the word would learn nothing.

    A given caption gets the trigger word put in front where it lacks it as words of their own, in any case; without one
    it is "a photo of {trigger word} {class word}".
    """
    said = " ".join((given or "").split())
    if not said:
        return " ".join(f"a photo of {spec.trigger_word} {spec.class_word}".split())
    has_it = re.search(rf"(?<!\w){re.escape(spec.trigger_word)}(?!\w)", said, re.IGNORECASE)
    return said if has_it else f"{spec.trigger_word}, {said}"


def class_caption(spec: TrainSpec, caption: str) -> str:
    """A caption without the subject: the class word stands where the trigger word stood, once.

    "a photo of sks dog" of trigger "sks" or "sks dog" and class "dog" gives "a photo of dog".
    """
    subject = rf"(?<!\w){re.escape(spec.trigger_word)}(?!\w)"
    if spec.class_word:
        subject += rf"(\s+{re.escape(spec.class_word)}(?!\w))?"
    said = re.sub(subject, lambda _: spec.class_word, caption, flags=re.IGNORECASE)
    return re.sub(r"\s+([,.])", r"\1", " ".join(said.split())).lstrip(",. ")


def build_manifest(spec: TrainSpec, pictures: Iterable[DatasetPicture]) -> Manifest:
    """The manifest of `pictures` in their order, each with its final caption."""
    return Manifest(
        tuple(
            ManifestExample(picture.sha256, caption_for(spec, picture.caption), picture.width, picture.height)
            for picture in pictures
        )
    )
