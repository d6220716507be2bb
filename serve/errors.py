"""All errors, each with its status and a stable code. `serve.http.problems` puts them on the wire."""


class MidstepError(Exception):
    """detail: a sentence that a person can act on; param: the wrong field"""

    status = 500
    code = "internal_error"
    title = "Internal error"
    is_final = False  # whether the same request would fail again, for example because it kills replicas

    def __init__(self, detail: str, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequestError(MidstepError):
    status, code, title = 400, "invalid_request", "Invalid request"


class UnsupportedImageError(InvalidRequestError):
    """A picture that is no PNG, JPEG or WebP file, or a broken one."""

    status, code, title = 415, "unsupported_image", "Unsupported image"


class ImageTooLargeError(InvalidRequestError):
    """A picture with too many bytes or pixels."""

    status, code, title = 413, "image_too_large", "Image too large"


class InvalidApiKeyError(MidstepError):
    """The API key is missing or unknown."""

    status, code, title = 401, "invalid_api_key", "Invalid API key"


class ForbiddenError(MidstepError):
    """It exists, but not for this client."""

    status, code, title = 403, "forbidden", "Forbidden"


class ModelNotFoundError(MidstepError):
    status, code, title = 404, "model_not_found", "Model not found"


class AdapterNotFoundError(MidstepError):
    status, code, title = 404, "adapter_not_found", "Adapter not found"


class RouteNotFoundError(MidstepError):
    status, code, title = 404, "route_not_found", "Route not found"


class JobNotFoundError(MidstepError):
    status, code, title = 404, "prediction_not_found", "Prediction not found"


class ObjectNotFoundError(MidstepError):
    status, code, title = 404, "file_not_found", "File not found"


class MethodNotAllowedError(MidstepError):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class RequestTimeoutError(MidstepError):
    """The request did not arrive in time."""

    status, code, title = 408, "request_timeout", "Request timeout"


class BodyTooLargeError(MidstepError):
    status, code, title = 413, "body_too_large", "Body too large"


class UnsupportedEncodingError(MidstepError):
    status, code, title = 415, "unsupported_content_encoding", "Unsupported content encoding"


class ClientLeftError(MidstepError):
    """The client is gone. Nobody reads the answer, but the code is counted."""

    status, code, title = 499, "client_left", "Client left"


class InvalidInputError(MidstepError):
    """A job that can never run. It is refused when it is submitted, not when its turn comes."""

    status, code, title = 422, "invalid_input", "Invalid input"


class IdempotencyKeyReusedError(MidstepError):
    """An idempotency key came again with another payload."""

    status, code, title = 422, "idempotency_key_reused", "Idempotency key reused"


class QueueFullError(MidstepError):
    status, code, title = 429, "queue_full", "Queue full"


class RateLimitError(MidstepError):
    """The client has used up its limit for now."""

    status, code, title = 429, "rate_limit_exceeded", "Rate limit exceeded"


class DeadlineTooEarlyError(MidstepError):
    """The request takes longer than its deadline allows, at any load."""

    status, code, title = 422, "deadline_too_early", "Deadline too early"


class DeadlineTooEarlyNowError(MidstepError):
    """The request misses its deadline at the present load, but not at a lower load."""

    status, code, title = 429, "deadline_too_early_now", "Deadline too early now"


class NotReadyError(MidstepError):
    """A stage has no replica yet, or a model is still being read in."""

    status, code, title = 503, "not_ready", "Not ready"


class AdapterUnavailableError(MidstepError):
    """An adapter that a request names elsewhere cannot be fetched now, or not so soon."""

    status, code, title = 503, "adapter_unavailable", "Adapter unavailable"


class JobStoreUnavailableError(MidstepError):
    """The database is locked or unreachable. Accepted jobs are safe, but new ones are refused."""

    status, code, title = 503, "job_store_unavailable", "Job store unavailable"


class ObjectStoreUnavailableError(MidstepError):
    """The object store is unreachable or refuses us. The work can be repeated later."""

    status, code, title = 503, "object_store_unavailable", "Object store unavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after_s=1)


class DeadlineExceededError(MidstepError):
    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class StorageFullError(MidstepError):
    status, code, title = 507, "storage_full", "Storage full"


class GenerationFailedError(MidstepError):
    """An internal error in the middle of an image. The log has details under the request id."""


class NotFiniteError(GenerationFailedError):
    """The model has computed NaN or infinity, which would give a black picture."""

    code, title, is_final = "not_finite", "Values that are not numbers", True


class ModelUnloadableError(GenerationFailedError):
    """The files of the request's model cannot be used by a stage. Other models are served on."""

    # Not final: a disk or a mount may have been away.
    status, code, title = 422, "model_unloadable", "Model cannot be loaded"


class AdapterUnusableError(GenerationFailedError):
    """A stage cannot use one of the request's adapters: its file was changed or removed, or is damaged."""

    # Not final, as with models.
    status, code, title = 422, "adapter_unusable", "Adapter cannot be used"


class OutOfDeviceMemoryError(GenerationFailedError):
    """The request does not fit into a device's memory, even alone: the configured limits are too high."""

    status, code, title = 507, "out_of_memory", "Out of memory"


class PoisonousRequestError(GenerationFailedError):
    """Replicas die from this request. Sending it again would only kill more of them."""

    code, title, is_final = "poisonous_request", "Poisonous request", True
