"""`imprint token`: tokens of the HTTP API."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from cli.operations.owners import OWNER
from cli.output.terminal import answers, out, print_json
from core.clock import utcnow
from jobs.owners import tokens
from jobs.services import services


@click.group()
def token() -> None:
    """Create, list and revoke tokens of the HTTP API."""


@token.command()
@click.argument("name")
@click.option(
    "--owner", "owner_id", type=OWNER,
    help="The owner of the token. Without it, a service token: each call names the owner.",
)  # fmt: skip
@click.option(
    "--scope", "scopes", multiple=True, default=("read", "train"), show_default=True,
    help=f"{', '.join(tokens.SCOPES)}; can be given several times. view and operate are for service tokens.",
)  # fmt: skip
@click.option("--days", type=int, help="Days until it expires. Default: never.")
@answers
def create(name: str, *, owner_id: str | None, scopes: tuple[str, ...], days: int | None, as_json: bool) -> None:
    """Create a token called NAME.

    The token is shown only once: Imprint stores its hash.
    """
    secret, made = tokens.create(services(), name, owner_id=owner_id, scopes=scopes, days=days)
    if as_json:
        print_json({"token": secret, **_to_dict(made)})
        return
    click.echo(secret)  # alone on standard output, so that TOKEN=$(…) takes it
    whose = f"for {owner_id}" if owner_id else "for any owner, named in the header Imprint-Owner"
    click.echo(f"{made.id}: {', '.join(made.scopes)} {whose}. Save it now: it is not shown again.", err=True)


@token.command(name="list")
@answers
def list_tokens(*, as_json: bool) -> None:
    """List all tokens, newest first, without their secrets."""
    found = tokens.list_tokens(services())
    if as_json:
        print_json([_to_dict(one) for one in found])
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
    """Revoke TOKEN_ID (token_…, from `token list`). The next call with it is refused, and its sessions end."""
    row = _to_dict(tokens.revoke(services(), token_id))
    print_json(row) if as_json else out.print(f"{token_id} is revoked", highlight=False)


def _to_dict(one: tokens.Token) -> dict[str, Any]:
    return {name: value.isoformat() if name.endswith("_at") and value else value for name, value in asdict(one).items()}
