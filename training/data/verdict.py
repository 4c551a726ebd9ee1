"""The verdict on a measured picture for a base model and a resolution. A picture is measured once, and judged often."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from training.data.framing import MAX_ENLARGEMENT, WHOLE, Crop, Frame, View, view_of
from training.data.quality import faults_at

_TEXTS = {
    "blurred": "blurred: no part of it is sharp",
    "noise": "nothing but noise",
    "over_exposed": "too bright: it has no dark area",
    "under_exposed": "too dark: it has no bright area",
    "near_duplicate": "nearly the same as another picture of this subject",
    "unreadable": "it cannot be read",
    "unreachable": "it could not be fetched",
    "refused": "the screening refused it",
    "unusable_mask": "its mask could not be fetched or read, or has a different shape",
}


class Measured(Protocol):
    """What was measured of a picture; None, where it could not be decoded."""

    @property
    def width(self) -> int | None: ...

    @property
    def height(self) -> int | None: ...

    @property
    def bad(self) -> list[str] | None: ...


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is used: it has no fault. `texts` are its faults for people; a warning leaves nothing out."""

    faults: list[str]
    texts: list[str]
    warnings: list[str]
    view: View | None  # what a training sees; None for a picture that could not be decoded


def judge(measured: Measured, frame: Frame, crop: Sequence[float] | None = None) -> Verdict:
    """The verdict on a picture that is trained at `frame`, cropped by its owner to `crop`."""
    faults = list(measured.bad or ())
    if not measured.width or not measured.height:
        return Verdict(faults, [describe_fault(fault) for fault in faults], [], None)
    view = view_of(measured.width, measured.height, frame, Crop(*crop) if crop else WHOLE)
    faults = faults_at(faults, view.enlargement)
    texts = [describe_fault(fault, measured.width, measured.height, frame, view) for fault in faults]
    warnings = []
    if view.enlargement > 1.005 and "too_small" not in faults:
        warnings.append(
            f"it is enlarged {view.enlargement:.2f} times to {view.width} by {view.height} pixels; a larger picture, "
            f"or a resolution of at most {_largest(frame, view)}, is sharper"
        )
    return Verdict(faults, texts, warnings, view)


def describe_fault(
    fault: str, width: int = 0, height: int = 0, frame: Frame | None = None, view: View | None = None
) -> str:
    """The text of a fault of a picture with this size."""
    if fault != "too_small":
        return _TEXTS[fault]
    text = f"too small: {width} by {height} pixels"
    if frame is None or view is None:
        return text
    return (
        f"{text} would be enlarged {view.enlargement:.1f} times for {frame.resolution}; it fits a resolution of at "
        f"most {_largest(frame, view, MAX_ENLARGEMENT - 0.001)}"
    )


def _largest(frame: Frame, view: View, enlargement: float = 1.0) -> int:
    """The largest resolution, a multiple of 64, at which a picture is enlarged no more than this."""
    return max(64, int(frame.resolution / view.enlargement * enlargement) // 64 * 64)
