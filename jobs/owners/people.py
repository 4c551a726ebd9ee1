"""People who sign in by OpenID Connect: what their claims allow, and the token that their sessions belong to."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import Session, col, select

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


@dataclass(frozen=True)
class Person:
    """A person as the provider vouches for it.

    roles: values that an operator's settings may name, a verified address among them. owner: the owner that the
    settings' claim names, not checked yet.
    """

    issuer: str
    subject: str
    email: str | None  # only a verified one: any other may be anybody's
    roles: frozenset[str] = frozenset()
    owner: str | None = None

    @classmethod
    def parse(cls, claims: Mapping[str, object], settings: Settings) -> "Person":
        """The person whom the claims of a valid ID token name."""
        address = claims.get("email")
        email = address if isinstance(address, str) and claims.get("email_verified") is True else None
        known = {**claims, "email": email}
        given = known.get(settings.oidc_roles_claim)
        values = [*(given if isinstance(given, list) else [given]), email]
        owner = known.get(settings.oidc_owner_claim) if settings.oidc_owner_claim else None
        return cls(
            issuer=settings.oidc_issuer or "",
            subject=str(claims["sub"]),
            email=email,
            roles=frozenset(str(value) for value in values if value is not None),
            owner=owner if isinstance(owner, str) else None,
        )

    @property
    def name(self) -> str:
        """How the audit log names the person."""
        return "".join(letter for letter in self.email or self.subject if letter.isprintable())[:_MAX_NAME]


def sign_in(services: Services, person: Person) -> Token:
    """The token of a person, with the scopes of the role that the person has now.

    It has no secret that opens the HTTP API. Raises SpecInvalid for a person without a role and without an owner, whose
    earlier sessions then end.
    """
    settings = services.settings
    key = hashlib.sha256(f"{person.issuer} {person.subject}".encode()).hexdigest()
    try:
        role, owner_id = _role_of(settings, person)
    except SpecInvalid:
        with services.database.writing() as session:
            if (row := _known(session, key)) is not None:
                row.revoked_at = utcnow()
                audit_log.record(session, "token.revoked", owner_id=row.owner_id, token_id=row.id)
        raise
    with services.database.writing() as session:
        row = _known(session, key)
        if row is not None and row.owner_id != owner_id:  # what was started for the other owner stays with it
            row.revoked_at = utcnow()
            session.add(row)
            row = None
        if row is None:
            row = ApiToken(
                id=new_id("token"), sha256=tokens.hash_of(secrets.token_urlsafe(32)), name="", scopes="",
                owner_id=owner_id, person=key,
            )  # fmt: skip
        row.name, row.scopes = person.name, _ROLES[role]
        row.expires_at = utcnow() + timedelta(hours=settings.oidc_session_h)
        session.add(row)
        audit_log.record(session, "person.signed_in", owner_id=owner_id, token_id=row.id, role=role)
    return tokens.token_of(row)


def _known(session: Session, key: str) -> ApiToken | None:
    """The token of a person's sessions, locked."""
    lock_name(session, f"person {key}")
    known = select(ApiToken).where(ApiToken.person == key, col(ApiToken.revoked_at).is_(None))
    return session.exec(known).first()


def _role_of(settings: Settings, person: Person) -> tuple[str, str | None]:
    """The role, and the owner of a person without one. The stronger role counts."""
    for role, allowed in (("operator", settings.oidc_operators), ("viewer", settings.oidc_viewers)):
        if person.roles & set(allowed):
            return role, None
    if not person.owner:
        raise SpecInvalid.of({"token": "Your account may not use this installation. Ask its operator for access."})
    try:
        return "owner", owner_name(person.owner)
    except ValueError as error:
        raise SpecInvalid.of({"token": f"Your account does not name an owner: {error}."}) from None
