"""What each failure code means, and what the owner of the training can do about it.

The page on troubleshooting and the training's page show these texts.
"""

from dataclasses import dataclass

from core.errors import FailureCode


@dataclass(frozen=True)
class Advice:
    """`what` happened, and what the owner can `do`."""

    what: str
    do: str


ADVICE: dict[str, Advice] = {
    FailureCode.INSUFFICIENT_CREDITS: Advice(
        "The owner has fewer credits than the training may cost.",
        "Choose fewer steps or a smaller resolution, or get more credits.",
    ),
    FailureCode.TOO_FEW_IMAGES: Advice(
        "Too few good pictures were left: a training needs at least 5, plus those held out for validation.",
        "Replace the pictures that were left out, or add others. The fault of each is listed.",
    ),
    FailureCode.IMAGE_UNREACHABLE: Advice(
        "The server of a picture did not answer for a long time.",
        "Start the training again when the server works, or upload the picture.",
    ),
    FailureCode.IMAGE_INVALID: Advice(
        "A picture is damaged or cannot be read.",
        "Save the picture again as PNG or JPEG, upload it, and start a new training with it.",
    ),
    FailureCode.SPEC_INVALID: Advice(
        "The request has invalid values.",
        "Correct the values that the message names, and send the request again.",
    ),
    FailureCode.BASE_MODEL_UNAVAILABLE: Advice(
        "The base model was not found, is incomplete, belongs to another family, or has an unsupported format.",
        "Check its name and family, or choose another base model.",
    ),
    FailureCode.OUT_OF_MEMORY: Advice(
        "The training needs more memory than the device has.",
        "Choose a smaller batch size or resolution.",
    ),
    FailureCode.LOSS_NOT_FINITE: Advice(
        "The training diverged: the loss or the weights became infinite or not a number.",
        "Choose a smaller learning rate or a smaller alpha.",
    ),
    FailureCode.BACKEND_UNREACHABLE: Advice(
        "The training server did not answer.",
        "Start the training again later.",
    ),
    FailureCode.BACKEND_FAILED: Advice(
        "The training device or server does not work correctly.",
        "Start the training again later.",
    ),
    FailureCode.WORKER_LOST: Advice(
        "The worker stopped three times at the same point of the training.",
        "Start the training again. If that fails too, tell the operator the training's id.",
    ),
    FailureCode.SCREENING_UNAVAILABLE: Advice(
        "The pictures were not screened in time: the service's screener did not answer, or nobody decided on a picture "
        "that it held.",
        "Start the training again later. The operator finds the cause in the log and on the operators' page.",
    ),
    FailureCode.NOT_APPROVED: Advice(
        "The service's operator refused the training, or did not approve it in time. It cost nothing.",
        "Ask the operator, or start a training that costs less.",
    ),
    FailureCode.CAPTIONS_UNAVAILABLE: Advice(
        "The captioner did not write captions in time.",
        "Start the training again later, or give captions yourself.",
    ),
    FailureCode.REVIEW_EXPIRED: Advice(
        "The captions waited for a review, and were not accepted in time.",
        "Start the training again and accept the captions, or train without a review.",
    ),
    FailureCode.TIMEOUT: Advice(
        "The training took longer than the operator allows.",
        "Choose fewer steps or a smaller resolution.",
    ),
    FailureCode.UPLOAD_FAILED: Advice(
        "The LoRA file could not be stored.",
        "Start the training again.",
    ),
    FailureCode.LORA_INVALID: Advice(
        "The trained LoRA file failed its check.",
        "Start the training again. If that fails too, tell the operator the training's id.",
    ),
    FailureCode.CANCELLED: Advice(
        "The owner cancelled the training.",
        "Start it again at any time.",
    ),
    FailureCode.INTERNAL: Advice(
        "An unexpected error occurred in Imprint.",
        "Start the training again. If that fails too, tell the operator the training's id.",
    ),
}
