"""What a training that failed on a server failed of, by the server's own words.

The words come from the exceptions of ai-toolkit, huggingface_hub, diffusers and PyTorch. Most failures may pass; those
named here do not.
"""

import re

from core.errors import BackendFailed, BaseModelUnavailable, ImprintError, OutOfMemory, SpecInvalid, TooFewImages

_MEMORY = re.compile(r"out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_GATED = re.compile(r"gated repo|\bis gated|access to (the )?model .* is restricted|403 (client )?error", re.IGNORECASE)
_REFUSED = re.compile(r"401 (client )?error|\bunauthorized\b|invalid (user )?(token|credentials)", re.IGNORECASE)
_MISSING = re.compile(
    r"404 (client )?error|(repository|entry|revision) ?not ?found|not a valid model identifier|"
    r"does not appear to have a file named|is not a local folder and is not a valid",
    re.IGNORECASE,
)
_EMPTY = re.compile(r"dataset is empty|no images found", re.IGNORECASE)
_CONFIG = re.compile(
    r"config file error|must be specified|unknown (arch|network|optimizer|scheduler|model)|unsupported (arch|qtype)|"
    r"cannot (use|bypass) .+ at the same time|are mutually exclusive|is only supported (with|for)",
    re.IGNORECASE,
)
_MOST = 200  # characters of the server's words


def error_of(info: str) -> ImprintError:
    """The error for a job of status `error` with this text. A plain BackendFailed: another attempt may help."""
    words = quoted(info)
    if _MEMORY.search(info):
        return OutOfMemory("the server's GPU has too little memory for this training")
    if _GATED.search(info):
        return BaseModelUnavailable(
            "the hub does not let the server download the base model: accept its licence on the hub, and give the "
            f"server a token of that account (IMPRINT_HF_TOKEN){words}"
        )
    if _REFUSED.search(info):
        return BaseModelUnavailable(f"the hub rejects the server's token (IMPRINT_HF_TOKEN){words}")
    if _MISSING.search(info):
        return BaseModelUnavailable(f"the server does not find the base model on the hub{words}")
    if _EMPTY.search(info):
        return TooFewImages(f"the server found no pictures in the dataset{words}")
    if _CONFIG.search(info):
        return SpecInvalid(f"the server cannot train this recipe{words}")
    return BackendFailed(f"the training ended with an error on the server{words}")


def quoted(info: str) -> str:
    """The server's words in a form for owners: one line, without addresses, folders and tokens; empty if none."""
    text = info.strip().split("\n")[0]
    text = re.sub(r"https?://\S+", "(address)", text)
    text = re.sub(r"(?<![\w.])/[\w.@~-]+(?:/[\w.@~-]+)+", "(path)", text)
    text = re.sub(r"\b(hf_|sk-|Bearer )[\w-]{6,}", "(token)", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return f": {text[:_MOST]}{'…' * (len(text) > _MOST)}" if text else ""
