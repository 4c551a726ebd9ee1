"""How long a job may take, what it costs, whom it notifies, and jobs that come from RabbitMQ."""

from pydantic import BaseModel, Field, SecretStr


class JobSettings(BaseModel):
    """How long a job may take, what it costs, whom it notifies, and jobs that come from RabbitMQ."""

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
    deletion_grace_s: float = Field(
        0.0,
        ge=0,
        description="A deletion begins after this time; until then it can be undone. 0: at once.",
    )
    retention_days: int | None = Field(
        None,
        ge=1,
        description="The pictures and kept checkpoints of a training are deleted this many days after its end; the "
        "LoRA file stays. Unset: they stay until they are deleted.",
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
