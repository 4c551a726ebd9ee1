"""The public view of a job: what it tells, and above all what it does not."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.dialects.sqlite

from core.clock import utcnow
from core.json_column import JsonColumn
from credits.ledger import Hold
from jobs.view import JobView, view_of
from storage.picture_report import StoredReport
from storage.tables.jobs import Job, JobPicture, PictureState, Stage, Status
from training.families.registry import FAMILIES
from training.spec import TrainSpec

SCHEMA = Path(__file__).with_name("job_view.json")
SECRET = "do-not-tell"
SPEC = TrainSpec.model_validate({"base_model": "sd15", "trigger_word": "sks", "seed": 1})


def job(**values: Any) -> Job:
    content = {
        "id": "job_1",
        "owner_id": "ada",
        "subject_id": "dog",
        "spec": SPEC.model_dump(mode="json"),
        "total_steps": 100,
    }
    hidden = {
        "request_sha256": f"{SECRET}-hash",
        "idempotency_key": f"{SECRET}-key",
        "webhook_url": f"https://app.example/{SECRET}",
        "lease_holder": f"{SECRET}-host/123",
        "hold_id": f"{SECRET}-hold",
    }
    return Job(**{**content, **hidden, **values})


def picture(position: int, **values: Any) -> JobPicture:
    return JobPicture(
        **{
            "job_id": "job_1",
            "position": position,
            "reference": f"https://bucket.example/{position}.png?X-Amz-Signature={SECRET}",
            "source_sha256": f"{SECRET}-source",
            "lease_holder": f"{SECRET}-host/123",
            **values,
        }
    )


def hold(state: str, amount: int = 10, refunded: int = 0) -> Hold:
    return Hold("hold_1", "ada", "job_1", amount, 0, refunded, state, utcnow() + timedelta(days=1))


def test_no_address_holder_key_or_hash_is_in_it() -> None:
    gone = StoredReport(error="gone")
    pictures = [picture(0), picture(1, state=PictureState.BAD, faults=["unreachable"], report=gone)]
    content = json.dumps(view_of(job(lease_until=utcnow(), started_at=utcnow()), pictures, hold("held")).to_dict())
    assert SECRET not in content
    assert "gone" in content


def test_it_is_json_and_has_the_same_names_at_every_stage() -> None:
    names = {
        frozenset(view_of(job(status=status, stage=stage), [], None).to_dict()) for status in Status for stage in Stage
    }
    assert len(names) == 1
    content = json.loads(json.dumps(view_of(job(), [], None).to_dict()))
    assert (content["status"], content["stage"], content["model_id"]) == ("pending", "preprocess", "job_1")
    assert (content["lora"], content["failure"], content["finished_at"]) == (None, None, None)


def test_credits_follow_the_hold() -> None:
    def paid(status: Status, state: str, charged: int | None) -> dict[str, int]:
        return view_of(job(status=status, charged=charged), [], hold(state)).credits.model_dump()

    assert paid(Status.TRAINING, "held", None) == {"held": 10, "charged": 0, "refunded": 0}
    assert paid(Status.READY, "settled", 7) == {"held": 0, "charged": 7, "refunded": 3}
    assert paid(Status.FAILED, "released", 0) == {"held": 0, "charged": 0, "refunded": 10}
    assert paid(Status.READY, "expired", 0) == {"held": 0, "charged": 0, "refunded": 10}
    assert paid(Status.CANCELLED, "settled", 4) == {"held": 0, "charged": 4, "refunded": 6}
    later = view_of(job(status=Status.READY, charged=7), [], hold("settled", refunded=2))
    assert later.credits.model_dump() == {"held": 0, "charged": 5, "refunded": 5}


def test_a_failure_says_why_with_its_report() -> None:
    failed = job(
        status=Status.FAILED, failure_code="too_few_images", failure_message="3 of 5", details={"pictures": []}
    )
    assert view_of(failed, [], None).to_dict()["failure"] == {
        "code": "too_few_images", "message": "3 of 5", "details": {"pictures": []}
    }  # fmt: skip


def test_a_lora_is_there_once_it_was_uploaded() -> None:
    assert view_of(job(lora_sha256="ab", lora_bytes=3), [], None).lora is None
    uploaded = job(lora_sha256="ab", lora_bytes=3, lora_key="models/job_1/lora_weights.safetensors")
    assert view_of(uploaded, [], None).to_dict()["lora"] == {
        "key": "models/job_1/lora_weights.safetensors", "sha256": "ab", "bytes": 3
    }  # fmt: skip


def test_a_report_has_what_was_measured_or_why_there_is_nothing() -> None:
    """The JSON that applications know, to the byte; nothing that only the dataset step reads."""
    measured = StoredReport(
        width=80, height=120, format="PNG", sharpness=0.5, brightness=99.0, dhash="ab", faults=[], notes=["a note"],
        colours="cd", bad=[],
    )  # fmt: skip
    repeated = measured.model_copy(update={"repeats": 3, "error": "nearly the same as picture 4"})
    unread = StoredReport(error="the file is empty", code="image_invalid", bad=["unreadable"])
    size = '"width": 80, "height": 120, "format": "PNG", "sharpness": 0.5, "brightness": 99.0'
    for report, expected in (
        (measured, f'{{{size}, "faults": [], "notes": ["a note"]}}'),
        (
            repeated,
            f'{{{size}, "faults": [], "notes": ["a note"], "repeats": 3, "error": "nearly the same as picture 4"}}',
        ),
        (unread, '{"error": "the file is empty", "code": "image_invalid"}'),
    ):
        view = view_of(job(), [picture(0, report=report)], None).to_dict()
        assert json.dumps(view["pictures"][0]["report"]) == expected
        stored = JsonColumn(StoredReport).process_bind_param(report, sa.dialects.sqlite.dialect())
        assert JsonColumn(StoredReport).process_result_value(stored, sa.dialects.sqlite.dialect()) == report
    assert view_of(job(), [picture(0)], None).to_dict()["pictures"][0]["report"] is None


def test_a_report_of_an_earlier_version_is_read() -> None:
    old = {"width": 80, "height": 120, "faults": [], "entropy": 7.1, "bad": []}
    read = JsonColumn(StoredReport).process_result_value(json.dumps(old), sa.dialects.sqlite.dialect())
    assert (read.width, read.dhash, read.colours, read.bad) == (80, "", "", [])


def test_the_schema_is_the_one_that_applications_know() -> None:
    """A change here is a change for every application: name it in CHANGELOG.md, then write the file anew."""
    assert without_prose(JobView.model_json_schema(mode="serialization")) == json.loads(SCHEMA.read_text())


def without_prose(schema: Any, *, are_names: bool = False) -> Any:
    """A schema without its titles and descriptions, which change no value. `are_names`: the keys name fields."""
    if schema == list(FAMILIES):
        return ["each family of the registry"]  # a new one is not a change for every application
    if isinstance(schema, list):
        return [without_prose(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: without_prose(value, are_names=name in ("properties", "$defs") and not are_names)
        for name, value in schema.items()
        if are_names or name not in ("title", "description")
    }


def test_times_have_an_offset_and_names_keep_their_order() -> None:
    view = view_of(job(created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), [picture(0)], hold("held")).to_dict()
    assert view["created_at"] == "2026-01-02T03:04:05+00:00"
    assert list(view)[:5] == ["job_id", "model_id", "owner_id", "subject_id", "status"]
    assert JobView.model_validate(view).to_dict() == view
