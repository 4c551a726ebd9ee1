"""The sections of the docs site and their pages, by path in the repository. Every page is in one of them."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

NAV: dict[str, tuple[str, ...]] = {
    "Start": (
        "README.md",
        "docs/tutorial.md",
        "docs/page.md",
    ),
    "How to": (
        "docs/how-to/first-training.md",
        "docs/how-to/connect-an-application.md",
        "docs/use-the-lora.md",
        "docs/how-to/rent-a-pod.md",
        "docs/how-to/sqlite-to-postgresql.md",
        "docs/how-to/read-a-failure.md",
        "docs/how-to/add-a-family.md",
        "docs/training-by-hand.md",
    ),
    "Deploy": (
        "docs/deploy/single-machine.md",
        "docs/deploy/compose.md",
        "docs/deploy/kubernetes.md",
        "docs/deploy/updates.md",
        "docs/deploy/backup.md",
        "docs/deploy/several-gpus.md",
    ),
    "Run it": (
        "docs/operations.md",
        "docs/watching.md",
        "docs/rented-gpus.md",
        "docs/notices.md",
        "docs/rabbitmq-ingress.md",
        "docs/credits.md",
        "docs/troubleshooting.md",
        "docs/security.md",
    ),
    "Reference": (
        "docs/task.md",
        "docs/http-api.md",
        "docs/recipe.md",
        "docs/lora-files.md",
        "docs/settings.md",
        "docs/ai-toolkit-api.md",
    ),
    "Explanation": (
        "docs/why.md",
        "docs/faults.md",
        "docs/training-speed.md",
        "docs/pocket-model.md",
        "docs/benchmarks.md",
        *(f"docs/adr/{record.name}" for record in sorted((_ROOT / "docs" / "adr").glob("*.md"))),
    ),
    "The project": (
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
    ),
}

# Made from the code when the site is built (reference.py): the end of the section of this name.
MADE_IN = "Reference"
