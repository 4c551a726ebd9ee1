"""The processes of `make up`, and how they are monitored."""

from typing import Literal

from pydantic import BaseModel, Field, SecretStr


class ProcessSettings(BaseModel):
    """The processes of `make up`, and how they are monitored."""

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
