"""Settings of subjects, and the answer to a complete profile set."""

from pydantic import ConfigDict, Field

from web.models.common import RecipeFields, RequestModel, ResponseModel
from web.models.train_request import Recipe
from web.models.trainings import Training


class SubjectSettings(ResponseModel):
    """How a subject is trained."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "trainAutomatically": True,
                "baseModel": "sd15",
                "triggerWord": "sks dog",
                "classWord": "dog",
                "webhookUrl": None,
                "recipe": {"maxSteps": 1500, "resolution": 768},
            }
        }
    )

    train_automatically: bool
    base_model: str | None
    trigger_word: str | None
    class_word: str | None
    webhook_url: str | None
    recipe: RecipeFields = Field(description="What its trainings use where a request does not say otherwise.")


class SubjectChange(RequestModel):
    """Changes to a subject's settings. A field that is left out stays as it is; null clears it."""

    model_config = ConfigDict(json_schema_extra={"example": {"trainAutomatically": True, "triggerWord": "sks dog"}})

    train_automatically: bool | None = None
    base_model: str | None = Field(None, max_length=300)
    trigger_word: str | None = Field(None, max_length=120)
    class_word: str | None = Field(None, max_length=120)
    webhook_url: str | None = Field(None, max_length=2000)
    recipe: Recipe | None = Field(None, description="Replaces the whole recipe of the subject.")


class ProfileSet(ResponseModel):
    """Whether a complete profile set started a training, and if not, why not."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "started": False,
                "reason": "too_few_images",
                "message": "3 good pictures; a training needs at least 5",
                "training": None,
            }
        }
    )

    started: bool
    reason: str | None
    message: str | None
    training: Training | None
