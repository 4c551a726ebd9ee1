"""What the service connects to: the broker, the database and the object store."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr


class ConnectionSettings(BaseModel):
    """What the service connects to: the broker, the database and the object store."""

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
    callback_confirm_s: int = Field(
        0,
        ge=0,
        le=7 * 24 * 3600,
        description="Send a callback again if the application's worker has not ended it after this time, at most five "
        "times with doubled delays. Longer than the slowest callback waits and runs. 0: never.",
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
