"""All settings, in one typed class, read once: environment variables `IMPRINT_*`, then `.env`, then these defaults.

With no settings at all Imprint runs on one machine: SQLite, a folder as object store and a private Redis.
"""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every dial of the service. `docs/settings.md` is made from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="IMPRINT_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path(".imprint"), description="Folder for everything that the embedded defaults keep.")

    # ---- broker and results ----
    broker_url: SecretStr | None = Field(
        None, description="Redis or RabbitMQ address. Unset: a private Redis that `make up` starts."
    )
    result_url: SecretStr | None = Field(
        None, description="Where task results live. Unset: the broker if it is Redis, else the database."
    )
    visibility_timeout_s: int = Field(
        12 * 3600,
        ge=10,
        description="Redis redelivers a message after this long; above the longest training.",
    )

    # ---- database ----
    database_url: SecretStr | None = Field(
        None, description="`postgresql+psycopg://…` or `sqlite:///…`. Unset: SQLite under the home folder."
    )

    # ---- object store ----
    store_url: str | None = Field(None, description="`s3://bucket/prefix` or a folder. Unset: `store/` under home.")
    s3_endpoint_url: str | None = Field(None, description="Address of an S3 server other than Amazon's.")
    s3_region: str = Field("us-east-1", description="Region of the S3 server.")
    s3_access_key_id: SecretStr | None = Field(None, description="Unset: boto3's usual chain of credentials.")
    s3_secret_access_key: SecretStr | None = Field(None, description="Goes with the access key.")

    # ---- pictures from outside ----
    file_roots: list[Path] = Field([], description="Folders that `file://` pictures may come from. JSON list.")
    s3_source_buckets: list[str] = Field(
        [],
        description="Buckets that `s3://` pictures may come from, besides the store's own outside its prefix.",
    )
    fetch_allow_hosts: list[str] = Field(
        [], description="`host:port` pairs that may be fetched though their address is private. JSON list."
    )
    fetch_timeout_s: float = Field(60.0, gt=0, description="Wall-clock limit of one picture's download.")
    max_picture_bytes: int = Field(20_000_000, gt=0, description="Largest picture file.")
    max_picture_pixels: int = Field(50_000_000, gt=0, description="Largest picture, in pixels, before decoding.")
    max_job_bytes: int = Field(
        500_000_000, gt=0, description="Largest sum of the files of one job, pictures and masks."
    )

    # ---- training ----
    base_models: dict[str, str] = Field(
        {},
        description="Where base models are: name to folder or hub id, over the built-in names. JSON object.",
    )
    base_model_roots: list[Path] = Field(
        [], description="Folders that a request's `base_model` may point into, besides `bases/` under home."
    )
    training_adapters: dict[str, Path] = Field(
        {},
        description="De-distilling adapter files by base model: merged while training, never in the LoRA file. "
        "`z-image-turbo` wants one. JSON object.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="What training workers train on.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Of the frozen base model while training. `auto`: bfloat16 where that is faster, on GPUs and for "
        "full-size models on CPUs with units for it; float16 on GPUs without bfloat16.",
    )
    quantise_base: Literal["auto", "none", "8bit", "4bit"] = Field(
        "auto",
        description="Whether the attention and feed-forward weights of the frozen base model are kept in 8 or 4 bits "
        "while training, by bitsandbytes. `auto`: only where the GPU's memory is too small without.",
    )
    deterministic: bool = Field(
        False,
        description="On GPUs: the same file to the bit whoever trains beside it and after every resume, on one kind of "
        "card. Slower; every step has `IMPRINT_COHORT` slots, filled or idle. CPUs always do so.",
    )
    cohort: int = Field(
        0,
        ge=0,
        le=32,
        description="Most jobs that a training worker trains in one step. 0: one on a CPU, up to 32 on a GPU.",
    )
    training_timeout_s: int = Field(8 * 3600, gt=0, description="Longest training; then it fails with `timeout`.")

    # ---- remote training ----
    backends: dict[str, Literal["local", "ai-toolkit"]] = Field(
        {}, description="Who trains a family where the request is silent: `local` or `ai-toolkit`. JSON object."
    )
    ai_toolkit_url: str | None = Field(
        None, description="Address of an ai-toolkit server that stands already. Unset: pods are rented."
    )
    ai_toolkit_token: SecretStr | None = Field(None, description="Its password (`AI_TOOLKIT_AUTH`).")
    hf_token: SecretStr | None = Field(None, description="Model hub token that rented pods get, for gated models.")
    remote_poll_s: float = Field(30.0, gt=0, description="How often remote trainings are looked at.")
    remote_stall_s: float = Field(
        1800.0, gt=0, description="A remote training without a new step or log line for this long is given up."
    )
    remote_lost_polls: int = Field(
        10, ge=1, description="A server that fails to answer this many polls in a row is taken for lost."
    )
    runpod_api_key: SecretStr | None = Field(None, description="RunPod key: with it, pods may be rented.")
    runpod_url: str = Field("https://api.runpod.io/v2", description="Address of RunPod's REST API.")
    pod_proxy: str = Field(
        "https://{pod_id}-8675.proxy.runpod.net", description="Where a rented pod's server is reached."
    )
    pod_template: str | None = Field(None, description="RunPod template to rent by. Unset: by image.")
    pod_image: str = Field("ostris/aitoolkit:latest", description="Image to rent by.")
    pod_gpus: list[str] = Field(
        ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "NVIDIA L40S"],
        description="GPU types to ask for, in this order. JSON list.",
    )
    pod_disk_gb: int = Field(80, ge=10, description="Container disk of a rented pod.")
    pod_prefix: str = Field(
        "imprint", pattern=r"^[a-z0-9]+$", description="Our pods' names begin with it; one per installation."
    )
    pod_warm_s: float = Field(300.0, ge=0, description="An idle pod is kept this long for the next training.")
    pod_ready_s: float = Field(1200.0, gt=0, description="A pod whose server does not answer by then is given up.")
    pods_max: int = Field(2, ge=0, description="Most pods at one time.")
    pod_jobs_max: int = Field(4, ge=1, description="Most trainings queued on one pod before another is rented.")
    spend_per_hour: float = Field(5.0, ge=0, description="Ceiling on what all pods cost in an hour, in dollars.")
    spend_per_day: float = Field(40.0, ge=0, description="Ceiling on what was spent on pods in 24 hours, in dollars.")

    # ---- drawing with what was trained ----
    comfyui_url: SecretStr | None = Field(
        None, description="ComfyUI server that `imprint.generate` draws on. Unset: none."
    )
    comfyui_loras: Path | None = Field(
        None, description="Its `models/loras` folder as the io workers see it. Unset: by its assets API."
    )
    comfyui_timeout_s: float = Field(600.0, gt=0, description="Longest drawing, with its time in ComfyUI's queue.")

    # ---- the life of a job ----
    lease_s: float = Field(25.0, gt=0, description="A worker's claim on a stage ends this long after its last sign.")
    sweep_s: float = Field(30.0, gt=0, description="How often the sweeps look for what was left lying.")
    max_attempts: int = Field(3, ge=1, description="Attempts per stage before a transient failure is final.")
    retry_base_s: float = Field(2.0, gt=0, description="First delay before another attempt; then it doubles.")
    relaunch_after_s: float = Field(
        60.0,
        gt=0,
        description="A job whose message nobody took is sent again after this long; then it doubles.",
    )
    hold_days: int = Field(7, ge=1, description="A hold on credits expires after this many days.")

    # ---- credits ----
    prices: dict[str, int] = Field(
        {}, description="Credits per 1,000 steps by family, over the built-in table. JSON object."
    )

    # ---- notices ----
    webhook_secret: SecretStr | None = Field(
        None,
        description="`whsec_…`: signs webhooks (Standard Webhooks 1.0). Several, separated by spaces, rotate.",
    )
    webhook_timeout_s: float = Field(20.0, gt=0, description="Limit of one webhook delivery.")

    smtp_url: SecretStr | None = Field(
        None,
        description="`smtp://user:password@host:587` (STARTTLS where the server has it) or `smtps://…`: takes the "
        "e-mails that owners ask for. Unset: none is sent.",
    )
    mail_from: str = Field("Imprint <imprint@localhost>", description="Sender of e-mails.")
    public_url: str | None = Field(None, description="Where owners reach this installation: for links in e-mails.")
    operator_channels: list[SecretStr] = Field(
        [], description="Apprise addresses that alerts go to: Slack, Discord, Telegram, mail … JSON list."
    )
    alert_every_s: float = Field(
        300.0, ge=0, description="A channel gets at most one message in this time; a storm of alerts is one message."
    )

    # ---- RabbitMQ ingress ----
    ingress_url: SecretStr | None = Field(
        None,
        description="RabbitMQ with the queue `model_training`, beside any other broker. Unset: no ingress.",
    )
    ingress_owner: str | None = Field(None, description="Who pays for its messages that name no `owner_id`.")
    ingress_paths: str | None = Field(
        None,
        description="What relative `image_paths` are below: `https://…`, `s3://…` or `file:///…`. Unset: refused.",
    )

    # ---- HTTP API ----
    web_host: str = Field("127.0.0.1", description="Address that the HTTP API listens on.")
    web_port: int = Field(8080, ge=0, le=65535, description="Its port; 0 picks a free one.")
    web_rate_per_s: float = Field(
        50.0,
        gt=0,
        description="Requests a second that one token may make, for one owner, of one web process; twice "
        "as many at once.",
    )
    web_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="Signs short-lived download addresses; the same on every machine that serves the API. Unset: one "
        "is made and kept under home.",
    )

    # ---- processes of `make up` ----
    io_concurrency: int = Field(2, ge=1, description="Processes of the worker for fetching, preparing, uploading.")
    flower_port: int = Field(5555, ge=0, le=65535, description="Flower's loopback port; 0 picks a free one.")
    flower_url: str | None = Field(
        None, description="Where operators reach Flower, for a link on their page. `make up` fills it in."
    )
    flower_auth: SecretStr | None = Field(None, description="`user:password` for Flower. Unset: one is made up.")
    log_level: str = Field("INFO", description="Level of what processes print.")
    log_format: Literal["text", "json"] = Field(
        "text", description="What processes print: lines for people, or one JSON object a line for machines."
    )

    # ---- watching ----
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which a worker, and the web process, answers Prometheus without a token; 0 picks a free "
        "one. Unset: none. `make up` gives it to the training worker, and the next two to the io worker and the web.",
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that port: keep it to the private network.")
    tracing: bool = Field(
        False, description="OpenTelemetry traces; where to is said by the `OTEL_…` variables. Needs `imprint[tracing]`."
    )

    @property
    def database(self) -> str:
        """SQLAlchemy address of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.resolve()}/imprint.db"

    @property
    def store(self) -> str:
        """`s3://…` or the path of a folder."""
        return self.store_url or str(self.home.resolve() / "store")

    @property
    def run_dir(self) -> Path:
        """Where a running stack leaves what its clients need to find it; private to the user."""
        return self.home.resolve() / "run"

    @property
    def log_dir(self) -> Path:
        return self.home.resolve() / "logs"


@cache
def settings() -> Settings:
    """The settings of this process, read on first use."""
    return Settings()
