"""People who sign in by OpenID Connect: what their claims allow, and the token that their sessions belong to."""

import hashlib
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import SpecInvalid
from core.ids import new_id
from core.names import owner_name
from core.settings import Settings
from jobs.owners import audit_log, tokens
from jobs.owners.tokens import Token
from jobs.services import Services
from storage.database import lock_name
from storage.tables.access import ApiToken

_ROLES = {"operator": "view operate", "viewer": "view", "owner": "read train"}
_MAX_NAME = 200


def sign_in(services: Services, issuer: str, claims: Mapping[str, Any]) -> Token:
    """The token of a person with these claims, with the scopes of the role that they have now.

    It has no secret that opens the HTTP API. Raises SpecInvalid for a person without a role and without an owner.
    """
    settings = services.settings
    role, owner_id = _role_of(settings, claims)
    person = hashlib.sha256(f"{issuer} {claims['sub']}".encode()).hexdigest()
    with services.database.writing() as session:
        lock_name(session, f"person {person}")
        known = select(ApiToken).where(ApiToken.person == person, col(ApiToken.revoked_at).is_(None))
        row = session.exec(known).first()
        if row is not None and row.owner_id != owner_id:  # what was started for the other owner stays with it
            row.revoked_at = utcnow()
            session.add(row)
            row = None
        if row is None:
            row = ApiToken(
                id=new_id("token"), sha256=tokens.hash_of(secrets.token_urlsafe(32)), name="", scopes="",
                owner_id=owner_id, person=person,
            )  # fmt: skip
        row.name, row.scopes = _name_of(claims), _ROLES[role]
        row.expires_at = utcnow() + timedelta(hours=settings.oidc_session_h)
        session.add(row)
        audit_log.record(session, "person.signed_in", owner_id=owner_id, token_id=row.id, role=role)
    return tokens.token_of(row)


def _role_of(settings: Settings, claims: Mapping[str, Any]) -> tuple[str, str | None]:
    """The role, and the owner of a person without one. The stronger role counts."""
    given = claims.get(settings.oidc_roles_claim)
    values = {str(value) for value in (given if isinstance(given, list) else [given]) if value is not None}
    values |= {email} if (email := _verified_email(claims)) else set()
    for role, allowed in (("operator", settings.oidc_operators), ("viewer", settings.oidc_viewers)):
        if values & set(allowed):
            return role, None
    claim = settings.oidc_owner_claim
    # An address that is not verified may be anybody's.
    named = None if claim is None else (_verified_email(claims) if claim == "email" else claims.get(claim))
    if not isinstance(named, str) or not named:
        raise SpecInvalid.of({"token": "Your account may not use this installation. Ask its operator for access."})
    try:
        return "owner", owner_name(named)
    except ValueError as error:
        raise SpecInvalid.of({"token": f"Your account does not name an owner: {error}."}) from None


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    email = claims.get("email")
    return email if isinstance(email, str) and claims.get("email_verified") is True else None


def _name_of(claims: Mapping[str, Any]) -> str:
    """How the audit log names the person: by what the provider vouches for."""
    name = _verified_email(claims) or str(claims["sub"])
    return "".join(letter for letter in name if letter.isprintable())[:_MAX_NAME]
