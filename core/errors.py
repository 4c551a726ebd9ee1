"""The one error tree. Each adapter turns the errors of its vendor into one of these.

ImprintError                     code internal
├── SpecInvalid                  spec_invalid            a request with invalid values, all of them named
│   └── ImagesUnfit              too_few_images          too few of its pictures fit its base model and resolution
├── KeyReused                    spec_invalid            an idempotency key of another request
├── InsufficientCredits          insufficient_credits
├── NotFound                     spec_invalid            a job, picture or account that does not exist
│   └── LoraNotReady             spec_invalid            a subject without a finished LoRA; says how far it is
├── IllegalMove                  spec_invalid            a job that has ended, a hold that is resolved
├── TooManyRequests              spec_invalid            an owner's requests that are not done yet reach their limit
│   └── LimitReached             spec_invalid            a limit of an owner or a token; says when it frees
├── TooFewImages                 too_few_images
├── ImageUnreachable             image_unreachable       may be retried
│   ├── ImageRefused             image_unreachable       an address that must not be called; final
│   └── ImagesMissing            image_unreachable       too few pictures, as their servers did not answer; final
├── ImageInvalid                 image_invalid
│   ├── MaskInvalid              image_invalid           the mask of a picture that itself may be good
│   └── ArchiveInvalid           image_invalid           an archive of pictures that is not accepted
├── BaseModelUnavailable         base_model_unavailable
├── OutOfMemory                  out_of_memory
├── LossNotFinite                loss_not_finite
├── BackendUnreachable           backend_unreachable     may be retried
│   └── BackendFull              backend_unreachable     no pod can be rented now, or no money is left; may be retried
├── BackendFailed                backend_failed
├── WorkerLost                   worker_lost             may be retried
│   └── DeviceLost               worker_lost             the GPU of a worker failed; may be retried elsewhere
├── ScreeningUnavailable         screening_unavailable   the pictures were not screened in time
├── CaptionsUnavailable          captions_unavailable    the captioner did not answer in time
├── ReviewExpired                review_expired          the owner did not accept the captions in time
├── TrainingTimeout              timeout
├── UploadFailed                 upload_failed
├── StoreUnavailable             upload_failed           the object store did not answer, or is full; may be retried
├── ObjectExists                 upload_failed           create-only, and the object exists
├── ObjectTooLarge               internal                an object larger than its reader allows
├── KeyRefused                   internal                a key that no object of ours can have
├── AddressRefused               internal                a foreign address that must not be called; final
├── Unreachable                  internal                a foreign server did not answer in time; may be retried
│   ├── AnswerRefused            internal                an answer that a retry will not change; final
│   └── MessageDeferred          internal                a server that works did not take one message; may be retried
├── SchemaUnknown                internal                a database that a newer Imprint has migrated
├── BackupInvalid                spec_invalid            a backup that cannot be made, read or restored
├── TrainingFailed               the job's               a task that waited for a job that failed
│   └── TrainingCancelled        cancelled               the same for a cancelled job
├── LoraInvalid                  lora_invalid            a LoRA file that is damaged or not as expected
├── WorkflowInvalid              spec_invalid            a workflow that cannot be patched, or that ComfyUI refuses
└── GeneratorError               backend_failed          ComfyUI refused or failed; final
    ├── GeneratorUnreachable     backend_unreachable     ComfyUI does not answer; may be retried
    └── GeneratorTimeout         timeout                 ComfyUI did not finish in time

Stop                             not a failure: why a training loop ends early
├── Cancelled                    the owner cancelled
├── LeaseLost                    another worker holds the job, or it has ended
└── HandOver                     this worker stops: write a checkpoint, then end
"""

from enum import StrEnum
from typing import Any, ClassVar


class FailureCode(StrEnum):
    """Why a job failed. Owners, webhooks and docs use these codes."""

    INSUFFICIENT_CREDITS = "insufficient_credits"
    TOO_FEW_IMAGES = "too_few_images"
    IMAGE_UNREACHABLE = "image_unreachable"
    IMAGE_INVALID = "image_invalid"
    SPEC_INVALID = "spec_invalid"
    BASE_MODEL_UNAVAILABLE = "base_model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    LOSS_NOT_FINITE = "loss_not_finite"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_FAILED = "backend_failed"
    WORKER_LOST = "worker_lost"
    SCREENING_UNAVAILABLE = "screening_unavailable"
    NOT_APPROVED = "not_approved"
    CAPTIONS_UNAVAILABLE = "captions_unavailable"
    REVIEW_EXPIRED = "review_expired"
    TIMEOUT = "timeout"
    UPLOAD_FAILED = "upload_failed"
    LORA_INVALID = "lora_invalid"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class ImprintError(Exception):
    """An error that says what happened, to what, and what to do.

    `message` is for the owner and never contains a secret, a foreign body or a presigned address. `details` is
    JSON-serialisable and is stored with the job. `retry_after_s`: for so long another attempt will not help, as far as
    is known.
    """

    code: ClassVar[FailureCode] = FailureCode.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message, details)
        self.message = message
        self.details = details or {}
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class SpecInvalid(ImprintError):
    """A request with invalid values. `faults` maps each argument to what is wrong with it."""

    code = FailureCode.SPEC_INVALID

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details)
        self.faults: dict[str, str] = dict(self.details.get("faults", {}))

    @classmethod
    def of(cls, faults: dict[str, str]) -> "SpecInvalid":
        """One error for all `faults`, with each of them in the message."""
        listed = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        return cls(f"the request has {len(faults)} fault(s): {listed}", {"faults": faults})


class ImagesUnfit(SpecInvalid):
    code = FailureCode.TOO_FEW_IMAGES


class KeyReused(ImprintError):
    code = FailureCode.SPEC_INVALID


class InsufficientCredits(ImprintError):
    code = FailureCode.INSUFFICIENT_CREDITS


class NotFound(ImprintError):
    code = FailureCode.SPEC_INVALID


class LoraNotReady(NotFound):
    """`details` has `status` and `job_id` of the latest training; if there was none, a status of None."""


class IllegalMove(ImprintError):
    code = FailureCode.SPEC_INVALID


class TooManyRequests(ImprintError):
    code = FailureCode.SPEC_INVALID


class LimitReached(TooManyRequests):
    """`details` has `limit`, `of` (owner or token), `value`, `used` and `frees_at`."""


class TooFewImages(ImprintError):
    code = FailureCode.TOO_FEW_IMAGES


class ImageUnreachable(ImprintError):
    code = FailureCode.IMAGE_UNREACHABLE
    retryable = True


class ImageRefused(ImageUnreachable):
    retryable = False


class ImagesMissing(ImageUnreachable):
    retryable = False


class ImageInvalid(ImprintError):
    code = FailureCode.IMAGE_INVALID


class MaskInvalid(ImageInvalid):
    pass


class ArchiveInvalid(ImageInvalid):
    pass


class BaseModelUnavailable(ImprintError):
    code = FailureCode.BASE_MODEL_UNAVAILABLE


class OutOfMemory(ImprintError):
    code = FailureCode.OUT_OF_MEMORY


class LossNotFinite(ImprintError):
    code = FailureCode.LOSS_NOT_FINITE


class BackendUnreachable(ImprintError):
    code = FailureCode.BACKEND_UNREACHABLE
    retryable = True


class BackendFull(BackendUnreachable):
    pass


class BackendFailed(ImprintError):
    code = FailureCode.BACKEND_FAILED


class WorkerLost(ImprintError):
    code = FailureCode.WORKER_LOST
    retryable = True


class DeviceLost(WorkerLost):
    pass


class ScreeningUnavailable(ImprintError):
    code = FailureCode.SCREENING_UNAVAILABLE


class NotApproved(ImprintError):
    """An operator refused the training, or none approved it in time."""

    code = FailureCode.NOT_APPROVED


class CaptionsUnavailable(ImprintError):
    code = FailureCode.CAPTIONS_UNAVAILABLE


class ReviewExpired(ImprintError):
    code = FailureCode.REVIEW_EXPIRED


class TrainingTimeout(ImprintError):
    code = FailureCode.TIMEOUT


class UploadFailed(ImprintError):
    code = FailureCode.UPLOAD_FAILED


class StoreUnavailable(ImprintError):
    code = FailureCode.UPLOAD_FAILED
    retryable = True


class ObjectExists(ImprintError):
    code = FailureCode.UPLOAD_FAILED


class ObjectTooLarge(ImprintError):
    pass


class KeyRefused(ImprintError):
    pass


class AddressRefused(ImprintError):
    pass


class Unreachable(ImprintError):
    """`details["status"]` is the HTTP status, if there was an answer."""

    retryable = True


class AnswerRefused(Unreachable):
    retryable = False


class MessageDeferred(Unreachable):
    pass


class SchemaUnknown(ImprintError):
    pass


class BackupInvalid(ImprintError):
    code = FailureCode.SPEC_INVALID


class TrainingFailed(ImprintError):
    """How a task ends that waited for a job that failed. `details` has `code`, `message`, `job_id` and `details`."""


class TrainingCancelled(TrainingFailed):
    code = FailureCode.CANCELLED


class LoraInvalid(ImprintError):
    code = FailureCode.LORA_INVALID


class WorkflowInvalid(ImprintError):
    """`details["nodes"]` maps nodes to what is wrong with them, if ComfyUI named them."""

    code = FailureCode.SPEC_INVALID


class GeneratorError(ImprintError):
    code = FailureCode.BACKEND_FAILED


class GeneratorUnreachable(GeneratorError):
    code = FailureCode.BACKEND_UNREACHABLE
    retryable = True


class GeneratorTimeout(GeneratorError):
    code = FailureCode.TIMEOUT


class Stop(Exception):
    """Why a training loop ends early. Not a failure."""


class Cancelled(Stop):
    """The owner cancelled the job."""


class LeaseLost(Stop):
    """Another worker holds the job, or the job has ended: write nothing more."""


class HandOver(Stop):
    """This worker stops: write a checkpoint, then leave the job to another worker."""
