"""Why a request was not answered, each with its gRPC code.

ServingError            INTERNAL            ours; the client learns no more than that
├── InvalidRequest      INVALID_ARGUMENT    fix the request
├── UnknownModel        NOT_FOUND           ask for another name or version
├── Overloaded          RESOURCE_EXHAUSTED  back off, retry elsewhere
├── OverBudget          RESOURCE_EXHAUSTED  come again later; elsewhere does not help
├── DeadlineExceeded    DEADLINE_EXCEEDED   allow more time
├── NotOffered          UNIMPLEMENTED       ask a server that was started so
├── LoadFailed          FAILED_PRECONDITION mend what is on disk
└── NotReady            UNAVAILABLE         retry

StartupError            no code             the process ends before it is ready, and says why in one line
"""

import grpc

# A status message travels in HTTP headers, which end at 8 KiB, and a character can take 12 bytes there.
LONGEST_MESSAGE = 500


class ServingError(Exception):
    code = grpc.StatusCode.INTERNAL
    retry_after_s: float | None = None  # known to be refused before

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 1]}…")


class InvalidRequest(ServingError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownModel(ServingError):
    code = grpc.StatusCode.NOT_FOUND


class Overloaded(ServingError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class OverBudget(ServingError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServingError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotOffered(ServingError):
    code = grpc.StatusCode.UNIMPLEMENTED


class LoadFailed(ServingError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class NotReady(ServingError):
    code = grpc.StatusCode.UNAVAILABLE


class StartupError(Exception):
    pass
