"""`celery -A tasks.app imprint …`: the sections of all commands."""

import click

from cli.backends import BACKENDS
from cli.doctor import doctor
from cli.fakes import FAKES
from cli.generate import GENERATION
from cli.ingress import ingress
from cli.loras import LORAS
from cli.notices import notices
from cli.operators import CREDITS, NOTICES
from cli.owners import owners
from cli.sections import SectionedGroup
from cli.sessions import sessions
from cli.tokens import token
from cli.trainings import TRAININGS
from cli.upkeep import UPKEEP
from core.private import make_private
from core.settings import settings


@click.group(cls=SectionedGroup)
def imprint() -> None:
    """Train LoRAs and run the service that trains them."""
    make_private(settings().home)


imprint.add_section("Trainings", TRAININGS)
imprint.add_section("LoRA files", (*GENERATION, *LORAS))
imprint.add_section("Credits", CREDITS)
imprint.add_section("Owners", (owners, sessions))
imprint.add_section("Notices", (notices, *NOTICES))
imprint.add_section("Backends", BACKENDS)
imprint.add_section("Installation", (doctor, token, ingress, *UPKEEP))
imprint.add_section("Stand-in servers for development", FAKES)
