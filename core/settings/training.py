"""Pictures and training on this installation's own workers."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class TrainingSettings(BaseModel):
    """Pictures and training on this installation's own workers."""

    # ---- pictures from outside ----
    file_roots: list[Path] = Field([], description="Folders that `file://` pictures may come from. JSON list.")
    s3_source_buckets: list[str] = Field(
        [],
        description="Buckets that `s3://` pictures may come from. The store's own bucket is allowed too, "
        "outside its prefix.",
    )
    fetch_allow_hosts: list[str] = Field(
        [], description="`host:port` pairs that may be fetched even if their address is private. JSON list."
    )
    fetch_timeout_s: float = Field(60.0, gt=0, description="Time limit of one picture's download.")
    fetch_min_bytes_per_s: int = Field(
        10_000,
        ge=0,
        description="A download that is slower on average, apart from its first 15 seconds, is given up. 0: no limit.",
    )
    fetch_request_s: float = Field(
        1800.0,
        gt=0,
        description="Time that one training's downloads may take in all on one worker, repeated attempts included.",
    )
    fetch_host_s: float = Field(
        300.0,
        gt=0,
        description="Time that an owner's failed downloads from one host may take in ten minutes. Then a worker does "
        "not call the host for this owner until the ten minutes are over.",
    )
    fetch_images_s: float = Field(
        120.0, gt=0, description="Time limit of one request to the HTTP API that names addresses of pictures, in all."
    )
    fetches_per_owner: int = Field(
        10, ge=1, description="Most such requests of an owner that may wait for their pictures at the same time."
    )
    fetch_patience_s: float = Field(
        3600.0,
        ge=0,
        description="A picture whose server does not answer is tried again for this long. Then the job fails with "
        "`image_unreachable`, or trains without the picture if the request says `allow_missing`.",
    )
    max_picture_bytes: int = Field(20_000_000, gt=0, description="Largest picture file.")
    max_picture_pixels: int = Field(50_000_000, gt=0, description="Largest picture, in pixels, before decoding.")
    max_pictures: int = Field(1000, ge=5, le=1000, description="Most pictures of one job.")
    max_job_bytes: int = Field(
        500_000_000, gt=0, description="Largest total size of the files of one job, pictures and masks."
    )

    # ---- training ----
    base_models: dict[str, str] = Field(
        {},
        description="Where base models are: name to folder or hub id. Adds to the built-in names and "
        "replaces them. JSON object.",
    )
    disabled_families: list[str] = Field(
        [],
        description="Families that requests may not train, such as those whose licence forbids what this installation "
        "is used for. JSON list of names.",
    )
    base_model_roots: list[Path] = Field(
        [], description="Folders that a request's `base_model` may point into, besides `bases/` under home."
    )
    training_adapters: dict[str, Path] = Field(
        {},
        description="De-distilling adapter files by base model: merged during training, never in the LoRA file. "
        "`z-image-turbo` and `flux1-schnell` need one. JSON object.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="The device of training workers.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the frozen base model during training. `auto`: bfloat16 where it is faster (GPUs, and"
        " full-size models on CPUs that support it); float16 on GPUs without bfloat16.",
    )
    quantise_base: Literal["auto", "none", "8bit", "4bit"] = Field(
        "auto",
        description="Whether the attention and feed-forward weights of the frozen base model are kept in 8 or 4 bits "
        "while training, by bitsandbytes. `auto`: only where the GPU's memory is too small without.",
    )
    captioner: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Weights of the captioner on training workers, for trainings with `captions: auto`: a folder or a "
        "hub id of a Florence-2 model, such as `florence-community/Florence-2-base`. Unset: no such trainings.",
    )
    deterministic: bool = Field(
        False,
        description="On GPUs of one model: the LoRA file is the same to the bit, whatever jobs train in the same step "
        "and after every resume. Slower: every step has `IMPRINT_COHORT` slots, filled or idle. CPUs always"
        " do this.",
    )
    cohort: int = Field(
        0,
        ge=0,
        le=32,
        description="Most jobs that a training worker trains in one step. 0: one on a CPU, up to 32 on a GPU.",
    )
    spot_notice: Literal["aws", "gcp"] | None = Field(
        None,
        description="Whose metadata server a worker on a spot machine asks for the notice that the machine will be "
        "taken away: Amazon EC2 or Google Compute Engine. The worker then hands its jobs over and ends.",
    )
    training_timeout_s: int = Field(8 * 3600, gt=0, description="A training that takes longer fails with `timeout`.")
    stage_timeout_s: int = Field(
        3600,
        gt=0,
        description="How long one attempt at any other stage may take: one picture, the dataset, the upload, or the "
        "submission or download of a remote training. Then another worker may try.",
    )
