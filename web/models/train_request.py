"""The request of a training: what to train, and how.

The fields are validated with the rest of the request, so that an answer names every fault at once.
"""

from typing import Any

from pydantic import ConfigDict, Field

from training.families.registry import BASE_MODELS
from training.spec import MAX_PICTURES, MIN_PICTURES
from web.models.common import PICTURE, RequestModel, as_in_spec


class Recipe(RequestModel):
    """How to train. Fields that are left out come from the family's recipe."""

    # Unknown fields are accepted here, so that the answer names them together with all other faults.
    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"maxSteps": 1500, "resolution": 768}})

    rank: Any = as_in_spec("rank", "The rank of the LoRA.")
    alpha: Any = as_in_spec("alpha", "The LoRA is scaled by alpha / rank.")
    learning_rate: Any = as_in_spec("learning_rate", "Default: the family's; 1 with prodigy.")
    optimizer: Any = as_in_spec("optimizer", "`adamw`, `adamw8bit` or `prodigy`.")
    batch_size: Any = as_in_spec("batch_size", "Pictures per step.")
    resolution: Any = as_in_spec("resolution", "In pixels, a multiple of 64.")
    aspect_buckets: Any = as_in_spec("aspect_buckets", "Train at aspect ratios near those of the pictures.")
    epochs: Any = as_in_spec("epochs", "How often each picture is used.")
    max_steps: Any = as_in_spec("max_steps", "The number of steps; replaces `epochs`.")
    checkpoint_every: Any = as_in_spec("checkpoint_every", "Epochs between checkpoints.")
    keep_checkpoints: Any = as_in_spec("keep_checkpoints", "Keep the LoRA file of every checkpoint.")
    captions: Any = as_in_spec(
        "captions",
        "`given`: yours, and the template for pictures without one. `auto`: a captioner writes those that are missing. "
        "`template`: the template for all.",
    )
    learns: Any = as_in_spec(
        "learns",
        "What captions written for you leave out, because the LoRA learns it: `character`, `object` or `style`. "
        "Default: by the class word.",
    )
    seed: Any = as_in_spec("seed", "The same seed gives the same LoRA.")
    backend: Any = as_in_spec("backend", "Where it is trained: `local` or `ai-toolkit`.")
    adapter: Any = as_in_spec("adapter", "The kind of adapter, and the layers that get one.")
    optimization: Any = as_in_spec("optimization", "Optimizer and learning-rate schedule.")
    objective: Any = as_in_spec("objective", "The loss.")
    data: Any = as_in_spec("data", "How pictures and captions are used.")
    validation: Any = as_in_spec("validation", "Validation loss and previews during the training.")


class TrainRequest(Recipe):
    """What to train. Fields that are left out come from the subject's settings, then from the family's recipe."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "baseModel": "sd15",
                "imageIds": [f"{PICTURE[:-1]}{number}" for number in range(6)],
                "triggerWord": "sks dog",
                "classWord": "dog",
            }
        },
    )

    image_ids: Any = Field(
        description="Stored pictures, in any order.",
        json_schema_extra={
            "type": "array",
            "items": {"type": "string", "maxLength": 200},
            "minItems": MIN_PICTURES,
            "maxItems": MAX_PICTURES,
        },
    )
    mask_ids: Any = Field(
        None,
        description="Stored masks, in the order of `imageIds`; null for a picture without one. Needs "
        "`objective.masked`. Default: the stored masks with the pictures' names.",
        json_schema_extra={
            "type": "array",
            "items": {"type": ["string", "null"], "maxLength": 200},
            "maxItems": MAX_PICTURES,
        },
    )
    base_model: Any = as_in_spec("base_model", f"{', '.join(f'`{name}`' for name in BASE_MODELS)}, a path or a hub id.")
    family: Any = as_in_spec("family", "Needed for a folder or hub id.")
    trigger_word: Any = as_in_spec(
        "trigger_word",
        "The word for the subject in prompts. Default: the subject's; a subject without one gets one that "
        "is derived from its id.",
    )
    class_word: Any = as_in_spec("class_word", "What the subject is: dog, woman, mug …")
    webhook_url: Any = as_in_spec("webhook_url", "Base address for webhooks.")
    on_end: Any = as_in_spec(
        "on_end", "A Celery task of your application that gets the final view of the job. Not with every token."
    )
    model_id: Any = as_in_spec(
        "model_id", "The id of the model in webhooks and in the key of its file; must be unused."
    )
    model_link: Any = as_in_spec("model_link", "Whether the last webhook has an address that needs no credentials.")
    reference: Any = as_in_spec("reference", "A small object that webhooks repeat.")
    priority: Any = as_in_spec("priority", "`low`, `normal` or `high`; `high` needs a token with the scope `priority`.")
    review: Any = as_in_spec("review", "Wait with the captions until you have accepted them.")
    allow_missing: Any = as_in_spec("allow_missing", "Train without pictures that stay unreachable.")
