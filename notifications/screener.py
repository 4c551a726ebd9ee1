"""The verdict of an application's screener."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from core.errors import Unreachable


class ScreeningVerdict(BaseModel):
    """What a screener says of a picture. `reason` is for the owner."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    verdict: Literal["accept", "refuse", "hold"]
    reason: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] | None = None


def parse(answer: Any) -> ScreeningVerdict:
    """The verdict in an answer. Raises Unreachable for anything else: the screener is asked again."""
    try:
        return ScreeningVerdict.model_validate({"verdict": answer} if isinstance(answer, str) else answer)
    except ValidationError:
        raise Unreachable('the screener\'s answer is not {"verdict": "accept", "refuse" or "hold"}') from None
