"""From what a captioner says to a caption: without a preamble, with the trigger word in place of what the LoRA learns.

A small captioner describes everything that it sees, whatever it is asked. So the words for the subject itself, or for
the style, are taken out here. The rules know English. Does not import torch.
"""

import re

from training.data.dataset import find_trigger
from training.spec import MAX_CAPTION_CHARACTERS, PERSON_WORDS, TrainSpec

_MARKS = re.compile(r"</?s>|<pad>|<unk>")
_MEDIUM = (
    r"(?:photo(?:graph)?|picture|image|painting|illustration|drawing|sketch|watercolou?r|render(?:ing)?|portrait|"
    r"cartoon|artwork|print|poster|collage|scene|close[- ]?up|screenshot)"
)
_PREAMBLE = re.compile(
    rf"""^(?:in\s+(?:the|this)\s+{_MEDIUM}\s*,?\s*(?:we\s+can\s+see|there\s+(?:is|are))?\s*
    |(?:the|this)\s+{_MEDIUM}\s+(?:shows|depicts|features|captures|presents|is\s+of|contains)\s+
    |(?:this|it)\s+is\s+(?=an?\s)
    |there\s+(?:is|are)\s+
    |we\s+can\s+see\s+)""",
    re.IGNORECASE | re.VERBOSE,
)
_OF_MEDIUM = re.compile(
    rf"^(?:an?|the)\s+(?:[\w-]+\s+){{0,4}}?{_MEDIUM}(?:\s+{_MEDIUM})?\s+(?:of|showing|depicting|with)\s+", re.IGNORECASE
)
_STYLE = (
    re.compile(r",?\s*\b(?:in|with|done\s+in)\s+(?:an?|the)\s+(?:[\w-]+\s+){0,4}?style(?:\s+of\s+[^,.;]+)?", re.I),
    re.compile(r",?\s*\b(?:painted|drawn|illustrated|rendered|sketched|made|done)\s+(?:in|with|on)\s+[^,.;]+", re.I),
    re.compile(
        r"(?:,\s*|\b)(?:in\s+)?(?:black[- ]and[- ]white|monochrome|sepia|watercolou?rs?|oil paints?|digital art|"
        r"pixel art|line art|vector art|pastels?|ink|charcoal|acrylics?|impressionis[mt]\w*|anime|cel[- ]shaded)\b",
        re.IGNORECASE,
    ),
)
# What is always the same about a person: "with long red hair and blue eyes".
_FEATURE = r"(?:hair|eyes?|skin|face|beard|moustache|mustache|freckles|complexion|eyebrows|lips|cheeks|nose|build)"
_FEATURES = re.compile(
    rf"\s*,?\s*\b(?:with|has|having|who\s+has)\s+(?:(?:an?|his|her|their)\s+)?(?:[\w-]+\s+){{0,4}}?{_FEATURE}"
    rf"(?:(?:\s*,\s*|\s+and\s+)(?:an?\s+)?(?:[\w-]+\s+){{0,4}}?{_FEATURE})*",
    re.IGNORECASE,
)
_ARTICLE = r"(?:an?|the|one|this|that)"
_NOT_AN_ADJECTIVE = r"(?!(?:of|in|on|at|with|and|or|is|are|by|next|near|to|from|behind|under|over)\b)"
_PHRASE = r"\b{article}\s+(?:{not_one}[\w-]+\s+){{0,5}}?(?:{heads})\b"


def finish(spec: TrainSpec, said: str) -> str | None:
    """The caption for what the captioner said of a picture; None if nothing is left."""
    text = " ".join(_MARKS.sub(" ", said).split()).strip(" .,;")
    text = _PREAMBLE.sub("", text)
    if not any(letter.isalpha() for letter in text):
        return None
    if find_trigger(spec, text) is None:
        text = _without_style(spec, text) if spec.learnt == "style" else _without_subject(spec, text)
    return _cut(text)


def _without_style(spec: TrainSpec, text: str) -> str:
    """The contents of the picture, behind the words for its style."""
    text = _OF_MEDIUM.sub("", text)
    for words in _STYLE:
        text = words.sub("", text)
    return f"{spec.subject}, {_tidy(text)}"


def _without_subject(spec: TrainSpec, text: str) -> str:
    """The caption with the trigger word in place of the first words for the subject, and without its features."""
    text = _OF_MEDIUM.sub("", text)
    phrase = re.compile(
        _PHRASE.format(article=_ARTICLE, not_one=_NOT_AN_ADJECTIVE, heads="|".join(map(re.escape, _heads(spec)))),
        re.IGNORECASE,
    )
    text, count = phrase.subn(lambda _: spec.subject, text, count=1)
    if spec.learnt == "character":
        text = _FEATURES.sub("", text)
    text = _tidy(text)
    return text if count else f"{spec.subject}, {text}"


def _heads(spec: TrainSpec) -> list[str]:
    """The nouns that may stand for the subject, the most special first."""
    words = spec.class_word.lower().split()
    found = [spec.class_word.lower(), words[-1]] if words else []
    return [*dict.fromkeys(found), *(sorted(PERSON_WORDS) if spec.learnt == "character" else ())]


def _tidy(text: str) -> str:
    text = re.sub(r"\s+([,.;])", r"\1", " ".join(text.split()))
    return re.sub(r"([,;])(?:\s*[,;.])+", r"\1", text).strip(" .,;")


def _cut(text: str) -> str:
    """At most as long as a caption may be, and cut behind a word."""
    if len(text) <= MAX_CAPTION_CHARACTERS:
        return text
    return text[: MAX_CAPTION_CHARACTERS + 1].rpartition(" ")[0] or text[:MAX_CAPTION_CHARACTERS]
