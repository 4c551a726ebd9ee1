"""`imprint notices`: e-mail settings of an owner."""

from typing import Any

import click

from cli.operations.owners import OWNER
from cli.output.terminal import answers, err, out, print_json
from jobs.notices import notices as preferences
from jobs.services import services
from notifications.preferences import EVENTS


@click.command()
@click.argument("owner_id", type=OWNER)
@click.option("--email", help='The e-mail address; "" for none.')
@click.option(
    "--event", "events", multiple=True, help=f"An event to mail, can be given several times: {', '.join(EVENTS)}."
)
@click.option("--low-credits", type=int, help="Send an e-mail when fewer credits are available; -1 for never.")
@answers
def notices(
    owner_id: str, *, email: str | None, events: tuple[str, ...], low_credits: int | None, as_json: bool
) -> None:
    """Show or change the e-mail settings of OWNER_ID."""
    changed: dict[str, Any] = {}
    if email is not None:
        changed["email"] = email or None
    if events:
        changed["events"] = events
    if low_credits is not None:
        changed["low_credits"] = None if low_credits == -1 else low_credits
    found = preferences.change(services(), owner_id, changed) if changed else preferences.get(services(), owner_id)
    if as_json:
        print_json({"email": found.email, "events": found.events, "low_credits": found.low_credits})
        return
    if found.email is None:
        out.print(f"{owner_id}: no e-mail", highlight=False)
        return
    out.print(f"{owner_id}: {found.email} for {', '.join(found.events)}", highlight=False)
    low = found.low_credits
    out.print("no e-mail about low credits" if low is None else f"e-mail when fewer than {low} credits are available")
    if services().settings.smtp_url is None:
        err.print("[yellow]No e-mail is sent until IMPRINT_SMTP_URL is set[/]")
