"""The weights of owners: how much training time one gets beside the others."""

import sqlalchemy as sa
from sqlmodel import col

from core.errors import SpecInvalid
from jobs.admission.decide import LOCK
from jobs.owners import audit_log
from jobs.owners.unusable_names import normal_name
from jobs.services import Services
from storage.database import insert_if_absent, lock_name
from storage.tables.admission import OwnerShare

_MOST = 1000.0


def set_weight(services: Services, owner_id: str, weight: float) -> None:
    """With a weight of 2, an owner gets twice as much as one with 1. Raises SpecInvalid."""
    owner_id = normal_name(owner_id)
    if not 1 / _MOST <= weight <= _MOST:
        raise SpecInvalid.of({"weight": f"must be between {1 / _MOST:g} and {_MOST:g}"})
    with services.database.writing() as session:
        lock_name(session, LOCK)  # decisions write these rows too
        insert_if_absent(session, OwnerShare(owner_id=owner_id))
        change = sa.update(OwnerShare).where(col(OwnerShare.owner_id) == owner_id)
        session.connection().execute(change.values(weight=weight))
        audit_log.record(session, "weight.changed", owner_id=owner_id, weight=weight)
