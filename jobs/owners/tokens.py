"""Bearer tokens of the HTTP API. Only a token's hash is stored, so a copy of the database contains no usable token."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import col, select

from core.clock import utcnow
from core.errors import IllegalMove, NotFound, SpecInvalid
from core.ids import new_id
from core.names import is_owner_name, owner_name
from jobs.owners import audit_log
from jobs.services import Services
from storage.tables.access import ApiToken

# Get and list; start, change and cancel; start with high priority; see the whole installation; see and change it.
SCOPES = ("read", "train", "priority", "view", "operate")
_OF_OPERATORS = ("view", "operate")
_PREFIX = "imp_"
_BYTES = 32
_MAX_NAME = 200
_OWN_SCOPES = ("read", "train", "priority")  # that an owner may give a token
MAX_OWN = 200  # valid tokens of an owner who creates them


@dataclass(frozen=True)
class Token:
    """A token and its scopes. Without an owner it is a service token, whose calls name the owner."""

    id: str
    name: str
    owner_id: str | None
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    person: str | None  # who signed in by OpenID Connect; None: a token with a secret

    def may(self, scope: str) -> bool:
        return scope in self.scopes or (scope == "view" and "operate" in self.scopes)

    def is_valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)

    @property
    def has_odd_owner(self) -> bool:
        """Whether an earlier version accepted the owner's name, and no lookup finds it (`unusable_names`)."""
        return self.owner_id is not None and not is_owner_name(self.owner_id)


def create(
    services: Services, name: str, *, owner_id: str | None = None, scopes: Sequence[str] = ("read", "train"),
    days: int | None = None,
) -> tuple[str, Token]:  # fmt: skip
    """Create a token. Returns its secret, which is not stored, and the token. Raises SpecInvalid."""
    faults = {}
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        faults["name"] = f"1 to {_MAX_NAME} characters"
    if not scopes or not set(scopes) <= set(SCOPES):
        faults["scopes"] = f"must be some of {', '.join(SCOPES)}"
    elif owner_id is not None and (found := [scope for scope in _OF_OPERATORS if scope in scopes]):
        faults["scopes"] = f"{found[0]} shows the data of all owners, so only a service token can have it"
    if owner_id is not None:
        try:
            owner_id = owner_name(owner_id)
        except ValueError as error:
            faults["owner"] = str(error)
    if days is not None and not 1 <= days <= 3650:
        faults["days"] = "1 to 3650"
    if faults:
        raise SpecInvalid.of(faults)
    secret = _PREFIX + secrets.token_urlsafe(_BYTES)
    row = ApiToken(
        id=new_id("token"),
        sha256=hash_of(secret),
        name=name.strip(),
        owner_id=owner_id,
        scopes=" ".join(scope for scope in SCOPES if scope in scopes),
        expires_at=utcnow() + timedelta(days=days) if days is not None else None,
    )
    with services.database.writing() as session:
        session.add(row)
        audit_log.record(session, "token.created", owner_id=owner_id, token_id=row.id, scopes=row.scopes)
    return secret, token_of(row)


def authenticate(services: Services, secret: str) -> Token | None:
    """The token with this secret; None if it is unknown, expired or revoked."""
    if not secret.startswith(_PREFIX) or len(secret) > 100 or not secret.isascii():
        return None
    digest = hash_of(secret)
    with services.database.reading() as session:
        row = session.exec(select(ApiToken).where(ApiToken.sha256 == digest)).one_or_none()
    # The index compares hashes, which reveal nothing about a secret; this comparison takes constant time.
    if row is None or not hmac.compare_digest(row.sha256, digest):
        return None
    token = token_of(row)
    return token if token.is_valid(utcnow()) else None


def create_own(
    services: Services, creator: Token, owner_id: str, name: str, days: int | None = None
) -> tuple[str, Token]:
    """Create a token of an owner, who is signed in with another one: it may do what that one may, and acts for the
    owner alone. Raises SpecInvalid, and IllegalMove if the owner has as many as an owner may have.
    """
    valid = [token for token in list_tokens(services, owner_id) if token.is_valid(utcnow())]
    if len(valid) >= MAX_OWN:
        raise IllegalMove(f"you have {len(valid)} tokens; revoke one first")
    scopes = [scope for scope in creator.scopes if scope in _OWN_SCOPES]
    return create(services, name, owner_id=owner_id, scopes=scopes, days=days)


def revoke(services: Services, token_id: str, owner_id: str | None = None) -> Token:
    """Revoke a token: the next call with it is refused, and its sessions and event streams end.

    Revoking again changes nothing. `owner_id` is the caller; None is an operator. Raises NotFound, also for a token of
    another owner.
    """
    with services.database.writing() as session:
        row = session.get(ApiToken, token_id)
        if row is None or owner_id not in (None, row.owner_id):
            raise NotFound(f"there is no token {token_id}")
        row.revoked_at = row.revoked_at or utcnow()
        session.add(row)
        audit_log.record(session, "token.revoked", owner_id=row.owner_id, token_id=row.id)
    return token_of(row)


def list_tokens(services: Services, owner_id: str | None = None) -> list[Token]:
    """All tokens, or those of an owner, newest first, including expired and revoked ones."""
    query = select(ApiToken).order_by(col(ApiToken.created_at).desc())
    if owner_id is not None:
        query = query.where(ApiToken.owner_id == owner_id)
    with services.database.reading() as session:
        return [token_of(row) for row in session.exec(query)]


def token_of(row: ApiToken) -> Token:
    """The token that a row stores."""
    kept = {name: getattr(row, name) for name in Token.__dataclass_fields__}
    return Token(**kept | {"scopes": tuple(row.scopes.split())})


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
