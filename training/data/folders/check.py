"""A folder of pictures, judged for a base model and resolution before anything starts: a verdict on every picture."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from core.errors import ImageInvalid
from core.picture_names import picture_label
from training.data.decoding.decoder import Decoder
from training.data.folders.picture_folder import FolderPicture
from training.data.framing import Frame
from training.data.quality import PictureReport, near_duplicates
from training.data.verdict import Verdict, judge


@dataclass(frozen=True)
class CheckedPicture:
    """A picture of a folder with its verdict. `report` is None if it cannot be read."""

    label: str
    picture: FolderPicture
    verdict: Verdict
    report: PictureReport | None

    @property
    def is_good(self) -> bool:
        """Whether a training would use it."""
        return not self.verdict.faults

    @property
    def notes(self) -> list[str]:
        """Why it is left out, or what to know about it, one line each."""
        if not self.is_good:
            return [f"{self.label} will be left out: {'; '.join(self.verdict.texts)}"]
        return [f"{self.label}: {warning}" for warning in self.verdict.warnings]


def check_pictures(pictures: Sequence[FolderPicture], frame: Frame, decoder: Decoder) -> list[CheckedPicture]:
    """Measure and judge pictures, several at a time. Raises WorkerLost if no decoder can be started."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        reports = list(pool.map(partial(_measure, decoder, frame), pictures))
    checked = []
    for position, (picture, report) in enumerate(zip(pictures, reports, strict=True)):
        label = picture_label(position, picture.path.name)
        if isinstance(report, PictureReport):
            checked.append(CheckedPicture(label, picture, judge(report, frame), report))
        else:
            checked.append(CheckedPicture(label, picture, Verdict(["unreadable"], [report], [], None), None))
    good = [one for one in checked if one.is_good]
    for index, first in near_duplicates([one.report for one in good if one.report is not None]).items():
        good[index].verdict.faults.append("near_duplicate")
        good[index].verdict.texts.append(f"nearly the same as {good[first].label}")
    return checked


def _measure(decoder: Decoder, frame: Frame, picture: FolderPicture) -> PictureReport | str:
    """The report on a picture, or why it cannot be read."""
    try:
        data = picture.path.read_bytes()
        return decoder.report(data, resolution=frame.resolution, aspect_buckets=frame.aspect_buckets)
    except (ImageInvalid, OSError) as error:
        return str(error)
