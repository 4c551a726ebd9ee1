"""`imprint token`: who may call the HTTP API."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from cli.terminal import answers, out, print_json
from core.clock import utcnow
from jobs import tokens
from jobs.services import services


@click.group()
def token() -> None:
    """Tokens of the HTTP API: create, list, revoke."""


@token.command()
@click.argument("name")
@click.option("--owner", "owner_id", help="Whose trainings it is for. Without: a service token, whose calls name one.")
@click.option(
    "--scope", "scopes", multiple=True, default=("read", "train"), show_default=True,
    help=f"{', '.join(tokens.SCOPES)}; may be given several times. operate is for service tokens.",
)  # fmt: skip
@click.option("--days", type=int, help="How long it is good for. Default: until it is revoked.")
@answers
def create(name: str, *, owner_id: str | None, scopes: tuple[str, ...], days: int | None, as_json: bool) -> None:
    """Make a token called NAME. It is shown this once: we keep only its hash."""
    secret, made = tokens.create(services(), name, owner_id=owner_id, scopes=scopes, days=days)
    if as_json:
        print_json({"token": secret, **_told(made)})
        return
    click.echo(secret)  # alone on standard output, so that TOKEN=$(…) takes it
    whose = f"for {owner_id}" if owner_id else "for any owner, named in the header Imprint-Owner"
    click.echo(f"{made.id}: {', '.join(made.scopes)} {whose}. Keep it now: it is not shown again.", err=True)


@token.command(name="list")
@answers
def list_tokens(*, as_json: bool) -> None:
    """List all tokens, newest first. The tokens themselves are kept nowhere."""
    found = tokens.known(services())
    if as_json:
        print_json([_told(one) for one in found])
        return
    table = Table("token", "name", "owner", "scopes", "created", "state", box=None)
    for one in found:
        state = "revoked" if one.revoked_at else "valid" if one.is_valid(utcnow()) else "expired"
        scopes = " ".join(one.scopes)
        table.add_row(one.id, one.name, one.owner_id or "(any)", scopes, f"{one.created_at:%Y-%m-%d %H:%M}", state)
    out.print(table)


@token.command()
@click.argument("token_id")
@answers
def revoke(token_id: str, *, as_json: bool) -> None:
    """Refuse TOKEN_ID (token_…, of `token list`) from the next call on."""
    told = _told(tokens.revoke(services(), token_id))
    print_json(told) if as_json else out.print(f"{token_id} is revoked", highlight=False)


def _told(one: tokens.Token) -> dict[str, Any]:
    return {name: value.isoformat() if name.endswith("_at") and value else value for name, value in asdict(one).items()}
