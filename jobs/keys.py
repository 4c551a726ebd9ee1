"""The keys of the object store. They are made from ids and hashes, never from names that came with a request."""


def original(sha256: str) -> str:
    """A source file, under its own hash."""
    return f"originals/{sha256[:2]}/{sha256}"


def prepared(sha256: str) -> str:
    """A prepared PNG, under its own hash."""
    return f"prepared/{sha256[:2]}/{sha256}.png"


def thumbnail(sha256: str) -> str:
    """A small JPEG of the prepared PNG with this hash, for pages."""
    return f"thumbnails/{sha256[:2]}/{sha256}.jpg"


def manifest(sha256: str) -> str:
    """A dataset's manifest, under its own hash."""
    return f"datasets/{sha256}.json"


def checkpoints(job_id: str) -> str:
    """Prefix of a job's checkpoints, which are there until it is final."""
    return f"checkpoints/{job_id}/"


def outputs(job_id: str) -> str:
    """Prefix of what waits between `train` and `upload`."""
    return f"outputs/{job_id}/"


def output(job_id: str, sha256: str) -> str:
    """A trained file on its way from `train` to `upload`."""
    return f"{outputs(job_id)}{sha256}.safetensors"


def kept_loras(model_id: str) -> str:
    """Prefix of the LoRA files of a model's checkpoints, if the request kept them."""
    return f"models/{model_id}/checkpoints/"


def kept_lora(model_id: str, step: int) -> str:
    """The LoRA file of a checkpoint."""
    return f"{kept_loras(model_id)}{step:08d}.safetensors"


def step_of(lora_key: str) -> int | None:
    """The step of a LoRA file that is a checkpoint's; None for the finished file."""
    folder, _, name = lora_key.rpartition("/")
    return int(name.removesuffix(".safetensors")) if folder.endswith("/checkpoints") else None


def previews(job_id: str) -> str:
    """Prefix of the samples that a remote trainer drew while training."""
    return f"previews/{job_id}/"


def preview(job_id: str, attempt: int, step: int, prompt: int, suffix: str) -> str:
    """One sample: of the attempt, after a step, for one of the prompts."""
    return f"{previews(job_id)}{attempt}/{step:09d}_{prompt}.{suffix}"


def drawing(drawing_id: str) -> str:
    """Prefix of the pictures of one drawing: of a row of `drawing`, or of one workflow of `imprint.generate`."""
    return f"drawings/{drawing_id}/"


def lora(model_id: str) -> str:
    """A finished LoRA file."""
    return f"models/{model_id}/lora_weights.safetensors"
