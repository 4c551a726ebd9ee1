"""What a failure means and what its owner may do, in plain words.

The page on troubleshooting begins each code with the same words, and then says more; a test compares the two.
"""

from dataclasses import dataclass

from core.errors import FailureCode


@dataclass(frozen=True)
class Advice:
    """`what` has happened, and what the owner of the training can `do` about it."""

    what: str
    do: str


ADVICE: dict[str, Advice] = {
    FailureCode.INSUFFICIENT_CREDITS: Advice(
        "There are fewer credits than the training may cost.",
        "Take fewer steps or a smaller resolution, or get credits.",
    ),
    FailureCode.TOO_FEW_IMAGES: Advice(
        "Fewer than 5 good pictures were left.",
        "Replace the pictures that are named: what is wrong stands beside each.",
    ),
    FailureCode.IMAGE_UNREACHABLE: Advice(
        "A picture could not be fetched.",
        "Check that its address is public and still valid, or upload the picture itself.",
    ),
    FailureCode.IMAGE_INVALID: Advice(
        "A file is no picture that can be read.",
        "Start the training again.",
    ),
    FailureCode.SPEC_INVALID: Advice(
        "The request has faults.",
        "Mend what is named.",
    ),
    FailureCode.BASE_MODEL_UNAVAILABLE: Advice(
        "The base model is not there, not complete, of another family, or in a form that cannot be read.",
        "Choose another base model, or check its name and family.",
    ),
    FailureCode.OUT_OF_MEMORY: Advice(
        "Memory ran out.",
        "Take a smaller batch size or resolution.",
    ),
    FailureCode.LOSS_NOT_FINITE: Advice(
        "The loss or the weights became infinite or not a number.",
        "Take a smaller learning rate or a smaller alpha.",
    ),
    FailureCode.BACKEND_UNREACHABLE: Advice(
        "Whoever trains did not answer.",
        "Try again later.",
    ),
    FailureCode.BACKEND_FAILED: Advice(
        "The device or the server that trains does not work.",
        "Try again later.",
    ),
    FailureCode.WORKER_LOST: Advice(
        "The workers on this stage ended before it did, three times without getting any further.",
        "Try again.",
    ),
    FailureCode.TIMEOUT: Advice(
        "The training took too long.",
        "Take fewer steps or a smaller resolution.",
    ),
    FailureCode.UPLOAD_FAILED: Advice(
        "The file could not be kept, or did not pass its check.",
        "Try again.",
    ),
    FailureCode.CANCELLED: Advice(
        "The owner cancelled.",
        "Start it again whenever you like.",
    ),
    FailureCode.INTERNAL: Advice(
        "An error that nobody foresaw; a mistake of ours.",
        "Try again; tell the operator the training's id.",
    ),
}
