"""The sections of the docs site and their pages: the list in docs/index.md, and the decision records."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INDEX = "docs/index.md"

RECORDS = "Decisions"  # the section of docs/adr
MADE_IN = "Build on it"  # the section that ends with the pages made from the code (reference.py)

# Old addresses of merged or renamed pages, and the pages that have their text now.
MOVED = {
    "how-to/first-training": "train-your-pictures",
    "training-by-hand": "train-your-pictures",
    "deploy/several-gpus": "train-your-pictures",
    "how-to/connect-an-application": "task",
    "how-to/rent-a-pod": "rented-gpus",
    "how-to/sqlite-to-postgresql": "deploy/upkeep",
    "deploy/updates": "deploy/upkeep",
    "deploy/backup": "deploy/upkeep",
    "how-to/read-a-failure": "troubleshooting",
    "how-to/add-a-family": "add-a-family",
    "watching": "monitoring",
    "notices": "credits",
    "why": "how-it-works",
    "faults": "how-it-works",
    "training-speed": "benchmarks",
    "reference/failure-codes": "troubleshooting",
    "pocket-model": "tutorial",
    "ai-toolkit-api": "rented-gpus",
    "rabbitmq-ingress": "brokers",
}


def sections() -> dict[str, list[str]]:
    """The pages of each section, as paths in the repository, in the order of the index."""
    found: dict[str, list[str]] = {"": ["README.md"]}
    section = ""
    for line in (ROOT / INDEX).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
            found[section] = []
        elif page := re.match(r"- \[[^\]]+\]\(([^)]+)\)", line):
            found[section].append(os.path.normpath(f"docs/{page[1]}"))
    found["Get started"] = [*found.pop(""), *found["Get started"]]
    found[RECORDS] = [f"docs/adr/{record.name}" for record in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    return found
