"""Which of a subject's pictures a training would use at a size: each picture with its verdict."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from storage.picture_report import StoredReport
from storage.tables.pictures import StoredPicture
from training.data.framing import Frame
from training.data.quality import Repeats, near_duplicates
from training.data.verdict import Verdict, describe_fault, judge


def belongs_to(owner_id: str, subject_id: str, is_mask: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition of a query for the pictures or masks that a subject has."""
    return (
        col(StoredPicture.owner_id) == owner_id,
        col(StoredPicture.subject_id) == subject_id,
        col(StoredPicture.is_mask) == is_mask,
        col(StoredPicture.removed_at).is_(None),
    )


OLDEST_FIRST = (col(StoredPicture.created_at), col(StoredPicture.id))


def judge_all(session: Session, owner_id: str, subject_id: str, frame: Frame) -> list[tuple[StoredPicture, Verdict]]:
    """Each picture with its verdict. Of near-duplicates the first is good, as in the dataset step."""
    pictures = session.exec(
        select(StoredPicture).where(*belongs_to(owner_id, subject_id)).order_by(*OLDEST_FIRST)
    ).all()
    judged = [(picture, judge(picture.report or StoredReport(), frame, picture.crop)) for picture in pictures]
    good = [(picture, verdict) for picture, verdict in judged if not verdict.faults and picture.report]
    for index in near_duplicates([picture.report or StoredReport() for picture, _ in good]):
        _add_near_duplicate(good[index][1])
    return judged


def judge_some(
    session: Session, owner_id: str, subject_id: str, frame: Frame, picture_ids: Collection[str]
) -> list[tuple[StoredPicture, Verdict]]:
    """What `judge_all` says of these pictures. Of the others, only those that they look like are judged."""
    texts = (sa.type_coerce(column, sa.String) for column in (col(StoredPicture.report), col(StoredPicture.crop)))
    query = sa.select(col(StoredPicture.id), *texts).where(*belongs_to(owner_id, subject_id)).order_by(*OLDEST_FIRST)
    rows = session.execute(query).all()
    measured = [_Measured(*(json.loads(text) if text else None for text in row[1:])) for row in rows]
    repeats = Repeats(measured, lambda index: not measured[index].judge(frame).faults)
    asked = session.exec(select(StoredPicture).where(col(StoredPicture.id).in_(picture_ids)))
    pictures = {picture.id: picture for picture in asked}
    judged = []
    for index, row in enumerate(rows):
        if (picture := pictures.get(row[0])) is not None:
            verdict = measured[index].judge(frame)
            if repeats.first_of(index) is not None:
                _add_near_duplicate(verdict)
            judged.append((picture, verdict))
    return judged


@dataclass(frozen=True)
class _Measured:
    """The columns of a picture that its verdict depends on, not validated yet: a subject may have two thousand."""

    report: dict[str, Any] | None
    crop: list[float] | None

    @property
    def dhash(self) -> str:
        return str((self.report or {}).get("dhash", ""))

    @property
    def colours(self) -> str:
        return str((self.report or {}).get("colours", ""))

    def judge(self, frame: Frame) -> Verdict:
        return judge(StoredReport.model_validate(self.report or {}), frame, self.crop)


def _add_near_duplicate(verdict: Verdict) -> None:
    verdict.faults.append("near_duplicate")
    verdict.texts.append(describe_fault("near_duplicate"))
