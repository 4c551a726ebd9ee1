"""All settings in one typed class, read once: from environment variables `IMPRINT_*`, then `.env`, then the defaults.

Without any setting Imprint runs on one machine: SQLite, a folder as object store and a private Redis.
"""

from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# What a browser sends as `Origin`: a scheme and a host, and no path.
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s]+)$")]


class Settings(BaseSettings):
    """All settings of the service. tools/tables.py writes these descriptions into docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="IMPRINT_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path(".imprint"), description="Folder for everything that the embedded defaults store.")

    # ---- broker and results ----
    broker_url: SecretStr | None = Field(
        None, description="Redis or RabbitMQ address. Unset: a private Redis that `make up` starts."
    )
    broker_password_file: Path | None = Field(
        None, description="File with the broker's password, for an address without one."
    )
    result_url: SecretStr | None = Field(
        None, description="Where task results are stored. Unset: in the broker if it is Redis, else in the database."
    )
    visibility_timeout_s: int = Field(
        12 * 3600,
        ge=10,
        description="Redis delivers an unacknowledged message again after this time. Longer than the longest training.",
    )

    callback_queue: str = Field(
        "celery",
        min_length=1,
        max_length=200,
        description="Queue of applications' callbacks that name none. Not one of Imprint's own queues.",
    )
    on_end_tasks: list[str] = Field(
        [],
        description="Tasks that an HTTP token of one owner may name in `onEnd`. Service tokens may name any task. JSON "
        "list.",
    )

    # ---- database ----
    database_url: SecretStr | None = Field(
        None,
        description="`postgresql+psycopg://…` or `sqlite:///…`. Unset: SQLite under the home folder. Works through "
        "pgbouncer; with `?prepare_threshold=5`, which needs direct connections, statements are prepared.",
    )

    # ---- object store ----
    store_url: str | None = Field(None, description="`s3://bucket/prefix` or a folder. Unset: `store/` under home.")
    s3_endpoint_url: str | None = Field(
        None, description="Address of an S3 server other than Amazon's. Unset: that of the AWS configuration, if any."
    )
    s3_region: str | None = Field(
        None, description="Region of the S3 server. Unset: that of the AWS configuration, or `us-east-1`."
    )
    s3_access_key_id: SecretStr | None = Field(
        None, description="Access key of the S3 server. Unset: boto3's usual chain of credentials."
    )
    s3_secret_access_key: SecretStr | None = Field(None, description="Secret that belongs to the access key.")
    s3_min_bytes_per_s: int = Field(
        100_000,
        gt=0,
        description="A transfer of an object that is slower than this, after two minutes, is given up and tried again.",
    )
    s3_session_token: SecretStr | None = Field(None, description="Token that belongs to temporary access keys.")
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Whether the bucket is in the path of an address or in its host name. `auto`: in the path with "
        "`IMPRINT_S3_ENDPOINT_URL`, else as the AWS configuration says.",
    )
    s3_ca_file: Path | None = Field(
        None, description="Certificates that the S3 server's must be signed by. Unset: the usual authorities."
    )

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
    max_job_bytes: int = Field(
        500_000_000, gt=0, description="Largest total size of the files of one job, pictures and masks."
    )

    # ---- training ----
    base_models: dict[str, str] = Field(
        {},
        description="Where base models are: name to folder or hub id. Adds to the built-in names and "
        "replaces them. JSON object.",
    )
    base_model_roots: list[Path] = Field(
        [], description="Folders that a request's `base_model` may point into, besides `bases/` under home."
    )
    training_adapters: dict[str, Path] = Field(
        {},
        description="De-distilling adapter files by base model: merged during training, never in the LoRA file. "
        "`z-image-turbo` needs one. JSON object.",
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
    training_timeout_s: int = Field(8 * 3600, gt=0, description="A training that takes longer fails with `timeout`.")
    stage_timeout_s: int = Field(
        3600,
        gt=0,
        description="How long one attempt at any other stage may take: one picture, the dataset, the upload, or the "
        "submission or download of a remote training. Then another worker may try.",
    )

    # ---- remote training ----
    backends: dict[str, Literal["local", "ai-toolkit"]] = Field(
        {}, description="Default backend by family: `local` or `ai-toolkit`. JSON object."
    )
    ai_toolkit_url: str | None = Field(
        None, description="Address of an existing ai-toolkit server. Unset: pods are rented."
    )
    ai_toolkit_token: SecretStr | None = Field(None, description="Password of that server (`AI_TOOLKIT_AUTH`).")
    hf_token: SecretStr | None = Field(None, description="Model hub token for rented pods, for gated models.")
    remote_poll_s: float = Field(30.0, gt=0, description="Seconds between two polls of remote trainings.")
    remote_stall_s: float = Field(
        1800.0, gt=0, description="A remote training without a new step or log line for this long is stopped."
    )
    remote_lost_polls: int = Field(
        10, ge=1, description="A server that does not answer this many polls in a row counts as lost."
    )
    runpod_api_key: SecretStr | None = Field(None, description="RunPod API key. With it, Imprint rents pods.")
    runpod_url: str = Field("https://api.runpod.io/v2", description="Address of RunPod's REST API.")
    pod_proxy: str = Field(
        "https://{pod_id}-8675.proxy.runpod.net", description="Address of the server on a rented pod."
    )
    pod_template: str | None = Field(
        None, description="RunPod template of rented pods. Unset: `IMPRINT_POD_IMAGE` is used."
    )
    pod_image: str = Field("ostris/aitoolkit:latest", description="Container image of rented pods.")
    pod_gpus: list[str] = Field(
        ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "NVIDIA L40S"],
        description="GPU types to rent, in order of preference. JSON list.",
    )
    pod_disk_gb: int = Field(80, ge=10, description="Container disk of a rented pod.")
    pod_prefix: str = Field(
        "imprint",
        pattern=r"^[a-z0-9]+$",
        description="The names of this installation's pods begin with it; each installation needs its own.",
    )
    pod_warm_s: float = Field(300.0, ge=0, description="An idle pod is kept this long for the next training.")
    pod_ready_s: float = Field(1200.0, gt=0, description="A pod whose server does not answer by then is deleted.")
    pods_max: int = Field(2, ge=0, description="Most pods at one time.")
    pod_jobs_max: int = Field(4, ge=1, description="Most trainings queued on one pod before another is rented.")
    spend_per_hour: float = Field(5.0, ge=0, description="Most that all pods may cost in an hour, in dollars.")
    spend_per_day: float = Field(40.0, ge=0, description="Most that pods may cost in 24 hours, in dollars.")

    # ---- drawing with trained LoRAs ----
    comfyui_url: SecretStr | None = Field(
        None, description="ComfyUI server that `imprint.generate` draws on. Unset: none."
    )
    comfyui_loras: Path | None = Field(
        None,
        description="Path of its `models/loras` folder on the fetch workers. Unset: LoRAs are sent by its assets API.",
    )
    comfyui_timeout_s: float = Field(
        600.0, gt=0, description="Time limit of a drawing, including its time in ComfyUI's queue."
    )
    drawings_per_owner: int = Field(
        4, ge=1, description="Most drawings of an owner that may wait or be drawn by workers at the same time."
    )
    drawing_timeout_s: float = Field(
        1800.0, gt=0, description="A drawing that a worker has not finished by then fails with `timeout`."
    )

    # ---- the life of a job ----
    lease_s: float = Field(25.0, gt=0, description="A worker's claim on a stage ends this long after its last renewal.")
    sweep_s: float = Field(
        30.0,
        gt=0,
        description="Seconds between two sweeps, which repair jobs without a worker and send unsent messages.",
    )
    max_attempts: int = Field(3, ge=1, description="Attempts per stage before a temporary failure is final.")
    retry_base_s: float = Field(
        2.0, gt=0, description="Delay before the second attempt; it doubles with each further attempt."
    )
    relaunch_after_s: float = Field(
        60.0,
        gt=0,
        description="A job whose message no worker took is sent again after this time; it doubles each time.",
    )
    hold_days: int = Field(7, ge=1, description="A hold on credits expires after this many days.")

    # ---- credits ----
    prices: dict[str, int] = Field(
        {}, description="Credits per 1,000 steps by family; replaces the built-in prices. JSON object."
    )

    drawing_prices: dict[str, int] = Field(
        {},
        description="Credits per 1,000 drawing steps by family, at its native size; replaces the built-in prices. 0: "
        "drawings are free. JSON object.",
    )

    # ---- notices ----
    webhook_secret: SecretStr | None = Field(
        None,
        description="`whsec_…`: signs webhooks (Standard Webhooks 1.0). For rotation, several secrets "
        "separated by spaces.",
    )
    webhook_timeout_s: float = Field(20.0, gt=0, description="Time limit of one webhook delivery.")

    smtp_url: SecretStr | None = Field(
        None,
        description="Mail server for e-mails to owners: `smtp://user:password@host:587` (STARTTLS if the server has it)"
        " or `smtps://…`. Unset: no e-mail is sent.",
    )
    mail_from: str = Field("Imprint <imprint@localhost>", description="Sender of e-mails.")
    public_url: str | None = Field(
        None, description="Address of this installation for owners, used in links in e-mails."
    )
    operator_channels: list[SecretStr] = Field(
        [], description="Apprise addresses for alerts: Slack, Discord, Telegram, mail … JSON list."
    )
    alert_every_s: float = Field(
        300.0,
        ge=0,
        description="A channel gets at most one message in this time, which has all alerts since the last one.",
    )

    # ---- RabbitMQ ingress ----
    ingress_url: SecretStr | None = Field(
        None,
        description="Address of RabbitMQ for messages from producers, in addition to the broker. Unset: no ingress.",
    )
    ingress_queue: str = Field(
        "model_training",
        min_length=1,
        max_length=200,
        description="Queue of these messages. An existing queue is used as it is. Refused messages go to a queue with "
        "this name and `.dead`.",
    )
    ingress_owner: str | None = Field(None, description="Owner of messages without an `owner_id`.")
    ingress_paths: str | None = Field(
        None,
        description="Prefix of relative `image_paths`: `https://…`, `s3://…` or `file:///…`. Unset: they are refused.",
    )

    # ---- HTTP API ----
    web_host: str = Field("127.0.0.1", description="Address that the HTTP API listens on.")
    web_port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API; 0 picks a free one.")
    web_rate_per_s: float = Field(
        50.0,
        gt=0,
        description="Requests per second that one token may send for one owner to one web process; bursts may be twice "
        "as large.",
    )
    web_trusted_proxies: list[str] | None = Field(
        None,
        description="Addresses and networks (`10.0.0.0/8`) of proxies in front of the HTTP API, whose "
        "`X-Forwarded-Proto` and `X-Forwarded-For` are believed. JSON list. Unset: proxies on this machine.",
    )
    web_cors_origins: list[Origin] = Field(
        [],
        description="Origins whose pages may call the HTTP API from a browser: `https://app.example`, or `*` for all. "
        "JSON list.",
    )
    web_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="Signs short-lived download addresses and the cookies of sessions; must be the same on every "
        "machine that serves the API. "
        "Unset: a random one, stored under home.",
    )

    upload_timeout_s: float = Field(600.0, gt=0, description="Time limit of sending the body of a request.")
    upload_min_bytes_per_s: int = Field(
        10_000,
        ge=0,
        description="A body that is slower on average, apart from its first 10 seconds, is refused. 0: no limit.",
    )
    uploads_per_caller: int = Field(
        4, ge=1, description="Uploads of pictures that one token may send for one owner at the same time."
    )
    uploads_max: int = Field(16, ge=1, description="Uploads of pictures at the same time in all, to one web process.")
    upload_bytes_max: int = Field(
        400_000_000,
        gt=0,
        description="Bytes of all uploads at the same time, to one web process; a token may have half of them. They "
        "need this much space in the temporary folder.",
    )
    streams_per_caller: int = Field(
        100, ge=1, description="Event streams that one token may have open for one owner on one web process."
    )
    streams_max: int = Field(
        2000,
        ge=1,
        description="Event streams on one web process in all. Fewer if the process may open fewer than twice as many "
        "files.",
    )

    # ---- processes of `make up` ----
    io_concurrency: int = Field(
        2,
        ge=1,
        description="Processes of the io worker, which takes requests, uploads, settles and sweeps. Also the pictures "
        "that a fetch worker or a web process decodes at the same time.",
    )
    fetch_concurrency: int = Field(
        16,
        ge=1,
        le=256,
        description="Threads of a fetch worker, which fetches and prepares pictures, sends notices and draws.",
    )
    flower_port: int = Field(5555, ge=0, le=65535, description="Flower's loopback port; 0 picks a free one.")
    flower_url: str | None = Field(
        None, description="Address of Flower for operators, used in a link on their page. `make up` sets it."
    )
    flower_auth: SecretStr | None = Field(None, description="`user:password` for Flower. Unset: a random password.")
    log_level: str = Field("INFO", description="Log level of the console.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Log format of the console: text for people, or one JSON object per line for machines."
    )

    # ---- monitoring ----
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which a worker or the web process serves metrics for Prometheus, without a token; 0 picks "
        "a free one. Unset: none. `make up` gives it to the training worker, and the next ports to io worker, web, "
        "fetch worker, and draw worker if there is one.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that the metrics port listens on. It must not be reachable from outside."
    )
    tracing: bool = Field(
        False, description="Send OpenTelemetry traces; the `OTEL_…` variables say where. Needs `imprint[tracing]`."
    )

    @field_validator("web_trusted_proxies")
    @classmethod
    def _are_networks(cls, given: list[str] | None) -> list[str] | None:
        for network in given or ():
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{network!r} is neither an address nor a network: {error}") from None
        return given

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.resolve()}/imprint.db"

    @property
    def store(self) -> str:
        """Address of the object store: `s3://…` or the path of a folder."""
        return self.store_url or str(self.home.resolve() / "store")

    @property
    def run_dir(self) -> Path:
        """Folder in which a running stack stores what its clients need to connect; private to the user."""
        return self.home.resolve() / "run"

    @property
    def log_dir(self) -> Path:
        return self.home.resolve() / "logs"


@cache
def settings() -> Settings:
    """The settings of this process, read on the first call."""
    return Settings()
