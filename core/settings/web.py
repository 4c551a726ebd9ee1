"""The HTTP API and the page."""

from ipaddress import ip_network
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, StringConstraints, field_validator

# What a browser sends as `Origin`: a scheme and a host, and no path.
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s]+)$")]


class WebSettings(BaseModel):
    """The HTTP API and the page."""

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

    web_undo_s: float = Field(
        600.0,
        ge=0,
        description="A deletion on the page begins after this time, or after `IMPRINT_DELETION_GRACE_S` if that is "
        "longer; until then it can be undone there.",
    )
    web_top_up_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Address of a page on which owners buy credits, for a link on their accounts. `{owner}` in it is "
        "replaced by the owner's name.",
    )
    web_docs_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]*\{page\}[^\s]*$",
        description="Address of the documentation's pages, for links from the options of a recipe. `{page}` in it is "
        "replaced by the page's name: `https://docs.example/{page}.html` for the site that `make docs` builds. "
        "Unset: no links.",
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

    @field_validator("web_trusted_proxies")
    @classmethod
    def _are_networks(cls, given: list[str] | None) -> list[str] | None:
        for network in given or ():
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"{network!r} is neither an address nor a network: {error}") from None
        return given
