"""Owners whose name no door accepts, left by earlier versions: list them, and give them another name."""

from core.errors import IllegalMove, NotFound, SpecInvalid
from core.names import intended_name, owner_name
from credits import ledger
from jobs.owners import audit_log
from jobs.services import Services
from jobs.view import View
from storage.owners import names_in_use, rename_rows


class OddOwner(View):
    """An owner whose stored name is not the one that requests are looked up by."""

    owner_id: str
    intended: str | None  # the name that was meant; None if it has a character that no name may have
    reason: str
    available: int
    held: int


def normal_name(owner_id: str, field: str = "owner_id") -> str:
    """The spelling of an owner's name that is stored. Raises SpecInvalid, which names `field`."""
    try:
        return owner_name(owner_id)
    except ValueError as error:
        raise SpecInvalid.of({field: str(error)}) from None


def list_odd(services: Services) -> list[OddOwner]:
    """Every owner whose name the migration could not change, with the credits of the account."""
    found = []
    with services.database.reading() as session:
        names = names_in_use(session.connection())
        for name in sorted(names):
            intended, reason = _judge(name, names)
            if intended != name:
                balance = ledger.balance(session, name)
                found.append(
                    OddOwner(
                        owner_id=name,
                        intended=intended,
                        reason=reason,
                        available=balance.available,
                        held=balance.held,
                    )
                )
    return found


def _judge(name: str, names: set[str]) -> tuple[str | None, str]:
    """The name that was meant, and why `name` is not it."""
    try:
        intended = intended_name(name)
    except ValueError as error:
        return None, str(error)
    return intended, f"another spelling of {intended}" + (", which exists too" if intended in names else "")


def rename(services: Services, old: str, new: str) -> str:
    """Give all that belongs to `old`, exactly as it is spelled, to an owner who does not exist yet. Returns the name.

    Raises SpecInvalid for a name that no owner can have, NotFound if nothing belongs to `old`, and IllegalMove if
    `new` exists: two accounts are never merged.
    """
    new = normal_name(new, "new")
    with services.database.writing() as session:
        connection = session.connection()
        names = names_in_use(connection)
        if old not in names:
            raise NotFound(f"nothing belongs to an owner called {old!a}")
        if new in names:
            raise IllegalMove(
                f"the owner {new} exists, and two accounts are never merged: grant {new} the credits that "
                f"{old!a} has left"
            )
        rename_rows(connection, old, new)
        audit_log.record(session, "owner.renamed", owner_id=new)
    return new
