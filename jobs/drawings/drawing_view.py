"""The public view of a drawing."""

from credits.ledger import Hold
from jobs.view import CreditsView, FailureView, Time, View
from storage.tables.drawings import DrawingRow, DrawingStatus


class DrawnPictureView(View):
    """One drawn picture. `number`: from 0, in the order of drawing."""

    number: int
    seed: int
    with_lora: bool
    key: str
    sha256: str
    bytes: int


class DrawingView(View):
    """The public view of a drawing. `step` counts the steps of all its pictures together."""

    drawing_id: str
    owner_id: str
    job_id: str
    status: DrawingStatus
    step: int
    total_steps: int
    prompt: str
    strength: float
    seed: int
    count: int
    compare: bool
    steps: int
    guidance: float
    width: int
    height: int
    base_model: str
    credits: CreditsView
    failure: FailureView | None
    pictures: list[DrawnPictureView]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None

    @property
    def id(self) -> str:
        """The drawing's id under the name that it has in the HTTP API."""
        return self.drawing_id

    @property
    def training_id(self) -> str:
        """The job's id under the name that it has in the HTTP API."""
        return self.job_id

    @property
    def by_seed(self) -> list[list[DrawnPictureView]]:
        """The pictures of each seed beside each other."""
        seeds = dict.fromkeys(picture.seed for picture in self.pictures)
        return [[picture for picture in self.pictures if picture.seed == seed] for seed in seeds]


def view_of(row: DrawingRow, hold: Hold | None, prefix: str) -> DrawingView:
    """The public view of a drawing. `prefix`: of its pictures in the object store."""
    held = hold.amount if hold is not None and hold.state == "held" else 0
    charged = (row.charged or 0) - (hold.refunded if hold is not None else 0)
    copied = {name: getattr(row, name) for name in DrawingView.model_fields if hasattr(row, name)}
    return DrawingView.model_validate(
        copied
        | {
            "drawing_id": row.id,
            "credits": CreditsView(
                held=held, charged=charged, refunded=hold.amount - charged if hold is not None and not held else 0
            ),
            "failure": FailureView(code=row.failure_code, message=row.failure_message, details={})
            if row.failure_code
            else None,
            "pictures": [
                DrawnPictureView(key=f"{prefix}{one.number:03d}.png", **one.model_dump()) for one in row.pictures
            ],
        }
    )
