"""What the pages say against what the code says. No I/O but the pages."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from celeryconfig import beat_schedule, task_queues
from cli.main import imprint
from cli.stack_members import Layout
from core.errors import FailureCode
from core.settings import Settings
from jobs.requests.envelope import Envelope
from jobs.view import view_of
from notifications.signing import parse_secrets, sign
from notifications.webhook_payload import EVENTS, status_of
from storage.tables.jobs import Job, JobPicture, PictureState, Stage, Status
from tests.docs.pages import (
    ALSO_LINKED,
    PAGES,
    ROOT,
    RUN,
    SHOWN,
    anchors,
    blocks,
    headings,
    links,
    name_of,
    prose,
    section,
    table_rows,
)
from tools.site.nav import sections
from training.data.pictures import FAULTS
from training.families.registry import FAMILIES
from training.spec import GROUPS, TrainSpec

README, DOCS = ROOT / "README.md", ROOT / "docs"
RECIPE = DOCS / "recipe.md"
TASK, OPERATIONS, TROUBLES = DOCS / "task.md", DOCS / "operations.md", DOCS / "troubleshooting.md"
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pages
def test_every_block_is_either_run_or_shown_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block}: ```{block.language} is not known; commands are sh or python"
        assert block.excuse is None or block.language in RUN, f"{block}: only commands need an excuse"
        if block.excuse is not None:
            print(f"not run: {block}: {block.excuse}")


@pytest.mark.parametrize("page", [*PAGES, *ALSO_LINKED], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: no heading for {link}"


def test_every_page_is_in_one_section_of_the_index() -> None:
    named = [page for pages in sections().values() for page in pages]
    assert len(named) == len(set(named))
    pages_of_the_site = {page.relative_to(ROOT).as_posix() for page in (*PAGES, *ALSO_LINKED)} - {"docs/index.md"}
    assert set(named) == pages_of_the_site, "docs/index.md has the sections"
    assert "docs/index.md" in links(README)


@pages
def test_what_a_page_says_to_make_and_set_exists(page: Path) -> None:
    text = page.read_text()
    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", "\n".join(code), re.MULTILINE)
    assert {target for words in named for target in words.split()} <= TARGETS
    settings = {f"IMPRINT_{name.upper()}" for name in Settings.model_fields}
    of_tests = {
        name
        for path in (ROOT / "tests").rglob("conftest.py")
        for name in re.findall(r'"(IMPRINT_TEST_[A-Z_]+)"', path.read_text())
    }
    assert set(re.findall(r"IMPRINT_[A-Z0-9_]*[A-Z0-9]", text)) <= settings | of_tests


def test_the_tables_that_the_code_knows_are_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "tools" / "tables.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert set(table_rows(prose(DOCS / "settings.md"))) >= {f"IMPRINT_{name.upper()}" for name in Settings.model_fields}


def test_settings_in_boxes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [block for block in blocks(DOCS / "settings.md") if block.language == "ini"]
    assert boxes
    for box in boxes:
        (tmp_path / ".env").write_text(box.text)
        read = Settings(_env_file=tmp_path / ".env")
        names = [line.partition("=")[0] for line in box.text.splitlines()]
        assert all(getattr(read, name.removeprefix("IMPRINT_").lower()) for name in names)
        if read.webhook_secret:
            assert parse_secrets(read.webhook_secret.get_secret_value())


def test_every_failure_code_has_advice_for_operators_and_every_picture_fault_a_section() -> None:
    assert set(table_rows(section(TROUBLES, "For operators"))) >= {*FailureCode}
    sections_of_page = headings(TROUBLES)
    faults = sections_of_page[sections_of_page.index("Pictures") + 1 : sections_of_page.index("The stack")]
    assert set(faults) == {*FAULTS, "refused", "unreachable", "unusable_mask"}


class TestTheTask:
    arguments = table_rows(section(TASK, "Arguments"))
    fields = table_rows(section(TASK, "The job"))

    def test_every_argument_has_a_row_with_its_bounds_and_default(self) -> None:
        schema = TrainSpec.model_json_schema()["properties"] | Envelope.model_json_schema()["properties"]
        for name, content in schema.items():
            row = self.arguments[name]
            for part in [content, *content.get("anyOf", [])]:
                for bound in ("minimum", "maximum", "exclusiveMaximum", "maxLength", "minItems", "maxItems"):
                    if bound in part and part[bound] != 2**63:
                        assert f"{part[bound]:g}" in row or str(part[bound]) in row, f"{name}: {bound} {part[bound]}"
        first, *_ = FAMILIES.values()
        for name in first.recipe:
            every = [f"{family.recipe[name]:g}" for family in FAMILIES.values()]
            wanted = every[0] if len({*every}) == 1 else "[the family's](base-models.md)"
            assert self.arguments[name].rstrip(" |").endswith(f"| {wanted}"), name

    @pytest.mark.parametrize("group", GROUPS)
    def test_every_option_of_the_recipe_has_a_row_with_its_bounds_and_default(self, group: str) -> None:
        rows = table_rows(section(RECIPE, group.capitalize()))
        schema = TrainSpec.model_json_schema()["$defs"][group.capitalize()]["properties"]
        assert set(schema) <= set(rows)
        for name, content in schema.items():
            for part in [content, *content.get("anyOf", [])]:
                for bound in ("minimum", "maximum", "exclusiveMinimum", "maxItems"):
                    assert bound not in part or f"{part[bound]:.10g}" in rows[name], name
            assert all(f"`{value}`" in rows[name] for value in content.get("enum", ())), name
            default = content["default"]
            if default is None:  # it depends on other options: the row says how, in words
                assert re.search(r"[a-z]{3} ", rows[name].split("|")[3]), name
                continue
            shown = {str: f"`{default}`", list: "none", bool: json.dumps(default)}.get(type(default))
            assert f"| {shown or f'{default:g}'} |" in rows[name], name

    def test_every_example_of_a_recipe_is_one(self) -> None:
        shown = [json.loads(block.text) for block in blocks(RECIPE) if block.language == "json"]
        assert {group for recipe in shown for group in recipe} >= set(GROUPS)
        for recipe in shown:
            made = TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "imp", "seed": 1, **recipe})
            assert made.to_dict().items() >= {name: recipe[name] for name in set(GROUPS) & set(recipe)}.items()

    def test_every_field_of_the_view_is_explained(self) -> None:
        spec = TrainSpec(base_model="sd15", trigger_word="imp", seed=1)  # type: ignore[call-arg]
        job = Job(id="job_1", owner_id="o", subject_id="s", request_sha256="", spec=spec.model_dump(mode="json"))
        view = view_of(job, [JobPicture(job_id="job_1", position=0, reference="pic_1")], None).to_dict()
        assert set(view) == set(self.fields)
        assert all(f'"{name}"' in self.fields["credits"] for name in view["credits"])
        assert all(f"`{name}`" in self.fields["pictures"] for name in view["pictures"][0])
        assert all(f"`{state}`" in self.fields["pictures"] for state in PictureState)

    def test_statuses_stages_events_and_rates(self) -> None:
        text = TASK.read_text()
        assert all(f"`{status}`" in text for status in Status)
        assert list(table_rows(section(TASK, "Statuses and stages"))) == list(Stage)
        assert all(f"`{status_of(event)}`" in table_rows(section(TASK, "Webhooks"))[event] for event in EVENTS)
        for name, family in FAMILIES.items():
            assert f"| {name} | {family.price.credits} | {family.price.resolution} |" in text

    def test_the_receiver_on_the_page_tells_genuine_notices_from_others(self) -> None:
        [source] = [block.text for block in blocks(TASK) if "def is_genuine" in block.text]
        page: dict[str, object] = {}
        exec(source, page)  # noqa: S102 - our own page
        secret, body, now = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", b'{"a":1}', int(time.time())

        def judge(at: int, sent: bytes, keys: str = secret) -> bool:
            signed = sign(parse_secrets(keys), "msg_1", at, body)
            headers = {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signed}
            return bool(page["is_genuine"](headers, sent, secret))  # type: ignore[operator]

        other = "whsec_" + "A" * 32
        assert judge(now, body)
        assert judge(now, body, f"{other} {secret}")
        assert not judge(now, body + b" ")
        assert not judge(now - 600, body)
        assert not judge(now, body, other)


class TestOperations:
    text = OPERATIONS.read_text()

    def test_every_subcommand_is_shown(self) -> None:
        assert isinstance(imprint, click.Group)
        shown = "\n".join(page.read_text() for page in PAGES)
        for name in imprint.commands:
            assert f"imprint {name}" in shown, name

    def test_processes_are_started_as_the_stack_starts_them(self, tmp_path: Path) -> None:
        for member in Layout(Settings(_env_file=None, home=tmp_path)).members:
            run = "python -m " if member.command[0] == "web" else ""
            assert f"{run}{' '.join([*member.command, *member.arguments])}\n" in self.text, member.name

    def test_queues_and_sweeps_are_named(self) -> None:
        assert all(f"`{queue.name}`" in self.text for queue in task_queues)
        assert all(f"`{entry['task']}`" in self.text for entry in beat_schedule.values())


def test_the_layout_on_the_readme_is_that_of_the_repository() -> None:
    [tree] = [block.text for block in blocks(README) if block.text.startswith("core/")]
    named = [line.split()[0] for line in tree.splitlines()]
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {f"{name}/" for name in packages} <= set(named)


def test_the_files_that_a_request_passes_have_what_the_page_names() -> None:
    rows = section(DOCS / "how-it-works.md", "One request, file by file")
    named = re.findall(r"`([\w/]+\.py)`: `(\w+)`", rows)
    assert len({file for file, _ in named}) > 10
    for file, name in named:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


# A setting whose name says so bounds what one owner or caller may occupy; but this one is how Redis sends again.
LIMIT = re.compile(r"(^|_)(max|limit|per|spend)(_|s_|$)|s_max$|_(timeout|patience)_s$|_concurrency$|^fetch\w*_s$")
NO_LIMITS = {"visibility_timeout_s"}


def test_the_page_on_security_has_every_limit_with_its_default() -> None:
    rows = section(DOCS / "security.md", "Limits").splitlines()
    limits = {name: field.default for name, field in Settings.model_fields.items() if LIMIT.search(name)}
    assert len(limits) > 30
    for name in limits.keys() - NO_LIMITS:
        found = [row for row in rows if row.startswith("|") and f"`IMPRINT_{name.upper()}`" in row]
        assert len(found) == 1, f"{name}: {found}"
        if limits[name] is not None:  # the others are in a table of limits that are unset
            assert re.search(rf"(?<![\d,]){limits[name]:,.10g}(?![\d,]*\d)", found[0]), (
                f"{name}: {limits[name]}: {found}"
            )
