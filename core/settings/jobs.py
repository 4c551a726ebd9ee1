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
    history_days: int | None = Field(
        None,
        ge=1,
        description="The events and sent messages of a training are deleted this many days after its end; the "
        "training, its charges and the audit log stay. Unset: they stay until the training is deleted.",
    )
    hold_days: int = Field(7, ge=1, description="A hold on credits expires after this many days.")

    # ---- whose turn it is ----
    admission_ahead: int = Field(
        3,
        ge=0,
        description="Jobs of a family that are sent to the workers beyond their slots, so that no slot waits for "
        "pictures. At least a quarter of the slots.",
    )
    prepare_ahead: int = Field(
        8,
        ge=0,
        description="Jobs of a family that wait for their turn and whose pictures a fetch worker prepares while it has "
        "nothing else to do. 0: none.",
    )
    admission_floor: int = Field(
        8, ge=1, description="Jobs of a family that are sent while no training worker of the family reports."
    )
    admission_remote: int = Field(
        0,
        ge=0,
        description="Most jobs on remote servers at a time. 0: what the rented pods may take, or 16 on a server of "
        "`IMPRINT_AI_TOOLKIT_URL`.",
    )
    admission_raise_s: float = Field(
        7200.0,
        gt=0,
        description="An owner none of whose waiting jobs of a priority was sent for this long rises by one class.",
    )
    share_half_life_s: float = Field(
        3600.0,
        gt=0,
        description="Training time that an owner has used counts half after this time when the next job is chosen.",
    )

    # ---- limits of an owner ----
    limit_running_jobs: int | None = Field(
        None, ge=0, description="Most jobs of an owner that are with the workers; more wait. Unset: no limit."
    )
    limit_waiting_jobs: int | None = Field(
        None, ge=0, description="Most jobs of an owner that wait for their turn. Unset: no limit."
    )
    limit_jobs_per_day: int | None = Field(
        None, ge=0, description="Most jobs of an owner in 24 hours. Unset: no limit."
    )
    limit_credits_per_day: int | None = Field(
        None, ge=0, description="Most credits that an owner's jobs of 24 hours may cost. Unset: no limit."
    )
    limit_pictures: int | None = Field(None, ge=0, description="Most stored pictures of an owner. Unset: no limit.")
    limit_bytes_stored: int | None = Field(
        None, ge=0, description="Most bytes of an owner's stored pictures and LoRA files. Unset: no limit."
    )

    # ---- approval ----
    approval_above: int | None = Field(
        None,
        ge=0,
        description="A training that costs more credits than this waits for the approval of an operator. Unset: none "
        "does.",
    )
    approval_first_job: bool = Field(
        False, description="Whether an owner's trainings wait for an operator until the first one is approved."
    )
    approval_days: int = Field(
        7, ge=1, description="A training that no operator approves for this long fails with `not_approved`, at no cost."
    )

    # ---- screening ----
    screen_task: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="What sees each new picture before a training may use it: a Celery task of the application, or an "
        "`https://…` address. Unset: pictures are not screened.",
    )
    screen_queue: str | None = Field(
        None, min_length=1, max_length=200, description="Queue of that task. Unset: `IMPRINT_CALLBACK_QUEUE`."
    )
    screen_patience_s: float = Field(
        3600.0,
        gt=0,
        description="A screener that gives no verdict is asked again for this long. Then the job fails with "
        "`screening_unavailable`, at no cost.",
    )
    screen_hold_s: float = Field(
        3 * 86400.0,
        gt=0,
        description="How long a picture may wait for a person's decision. Then its job fails the same way.",
    )

    # ---- captions ----
    caption_task: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="What writes captions for trainings that ask for them, in place of `IMPRINT_CAPTIONER`: a Celery "
        "task of the application, or an `https://…` address.",
    )
    caption_queue: str | None = Field(
        None, min_length=1, max_length=200, description="Queue of that task. Unset: `IMPRINT_CALLBACK_QUEUE`."
    )
    caption_patience_s: float = Field(
        3600.0,
        gt=0,
        description="A captioner of the application that does not answer is asked again for this long. Then the job "
        "fails with `captions_unavailable`, at no cost.",
    )
    review_s: float = Field(
        3 * 86400.0,
        gt=0,
        description="How long a job with `review` waits for its owner to accept the captions. Then it fails with "
        "`review_expired`, at no cost.",
    )

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
