"""Sign-in to the page by OpenID Connect."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _is_safe(address: str) -> str:
    """Keys and codes pass this address, so it is encrypted, or on this machine."""
    parts = urlsplit(address)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _LOOPBACK):
        raise ValueError("must be an https address")
    if parts.query or parts.fragment or not parts.hostname:
        raise ValueError("must be an address without query and fragment")
    return address.rstrip("/")


class OidcSettings(BaseModel):
    """Sign-in to the page by OpenID Connect."""

    # ---- sign-in by OpenID Connect ----
    oidc_issuer: Annotated[str, AfterValidator(_is_safe)] | None = Field(
        None,
        description="Address of the OpenID Connect provider by which people sign in to the page, such as "
        "`https://login.example/realms/company`. Needs `IMPRINT_OIDC_CLIENT_ID` and `IMPRINT_PUBLIC_URL`. Unset: they "
        "sign in with tokens only.",
    )
    oidc_client_id: str | None = Field(None, min_length=1, description="The id of Imprint at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="The secret of Imprint at the provider. Unset: a public client, with PKCE alone."
    )
    oidc_scopes: str = Field("openid email", description="What is asked for at the provider; `openid` must be in it.")
    oidc_roles_claim: str = Field(
        "groups", description="The claim of the ID token whose values the next two settings name."
    )
    oidc_operators: list[str] = Field(
        [],
        description="Who may see and change everything on the operators' pages: values of that claim, or verified "
        "e-mail addresses. JSON list.",
    )
    oidc_viewers: list[str] = Field(
        [], description="Who may see the operators' pages and change nothing: as above. JSON list."
    )
    oidc_owner_claim: str | None = Field(
        None,
        min_length=1,
        description="The claim that names the owner for whom a person without one of these roles signs in, such as "
        "`sub` or `email`. Unset: only operators and viewers sign in by OpenID Connect.",
    )
    oidc_session_h: float = Field(
        12.0, gt=0, le=168, description="Hours after which a person signs in at the provider again."
    )
