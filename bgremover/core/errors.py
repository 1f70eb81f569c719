"""Everything that can go wrong, and whom it blames.

BgremoverError
├── FileFault (FILE: the image goes to quarantine under `code`)
│   ├── EmptyImage           empty
│   ├── NotAnImage           not_an_image
│   ├── UnsupportedFormat    unsupported_format
│   ├── Truncated            truncated
│   ├── Animated             animated
│   ├── TooManyPixels        too_many_pixels
│   ├── TooLarge             too_large
│   ├── Unreadable           unreadable
│   ├── Rejected             rejected
│   ├── Unsafe               unsafe
│   ├── BadResult            bad_result
│   ├── UnknownCharge        unknown_charge
│   ├── AttemptsExhausted    attempts_exhausted
│   └── CrashLoop            crash_loop
├── Withdrawn (FILE: nothing is done; the sweep looks at the inbox afresh)
│   ├── Vanished             vanished
│   ├── Replaced             replaced
│   └── Blocked              blocked
├── ServiceFault (SERVICE: the image is deferred)
│   ├── Unreachable          unreachable        the body was not out
│   ├── Throttled            throttled
│   ├── ServerFailed         server_failed
│   ├── NoUsableAnswer       no_usable_answer   the charge is unknown
│   ├── GenerationFailed     generation_failed
│   ├── LinkFailed           link_failed
│   ├── LinkExpired          link_expired
│   ├── LinkRefused          link_refused
│   ├── BrokenResult         broken_result
│   └── InternalFault        internal_error     a defect of this program
├── AccountFault (ACCOUNT: everything pauses, every file stays)
│   ├── KeyRefused           key_refused
│   ├── PaymentRequired      payment_required
│   ├── Forbidden            forbidden
│   ├── EndpointMoved        endpoint_moved
│   ├── ContractChanged      contract_changed
│   └── BudgetReached        budget_reached
├── LocalFault (LOCAL: everything pauses, what was paid for is kept)
│   ├── DiskFull             disk_full
│   ├── ReadOnlyDisk         read_only
│   ├── DiskFailed           disk_failed
│   ├── LedgerDamaged        ledger_damaged
│   ├── FolderLost           folder_lost
│   ├── NoPermission         no_permission
│   └── TooManyOpenFiles     too_many_open_files
├── SetupError               exit 78: the configuration or the set-up is wrong
└── AlreadyRunning           exit 75: another instance owns the state folder

The class carries the consequence; `core.verdict` is the one place that reads it.
"""

import errno
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Blame(Enum):
    """Whose fault it is; decides what happens to the file and to the line."""

    FILE = "file"
    SERVICE = "service"
    ACCOUNT = "account"
    LOCAL = "local"


class Billed(Enum):
    """What is known about the charge of a call. A call without an answer may still be billed."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What is kept of an HTTP answer for the error JSON. `body` is cut to 2 kB."""

    status: int
    request_id: str | None = None
    reject_reason: str | None = None
    body: str = ""


class BgremoverError(Exception):
    """Base of all expected faults.

    Args:
        message: What happened, for a person.
        billed: What the fault tells about the charge of the call it ended.
        http: The answer that said so, if there was one.
    """

    code: ClassVar[str]
    hint: ClassVar[str] = ""

    def __init__(
        self, message: str, *, billed: Billed = Billed.NO, http: HttpAnswer | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.billed = billed
        self.http = http


class FileFault(BgremoverError):
    """The image itself is the reason: it goes to quarantine."""

    blame: ClassVar[Blame] = Blame.FILE


class EmptyImage(FileFault):
    """The file has no bytes."""

    code = "empty"
    hint = "The file has no bytes. Copy it again from where it came from."


class NotAnImage(FileFault):
    """The bytes are no picture, whatever the name says."""

    code = "not_an_image"
    hint = "The content is no picture, whatever its name says. Remove it, or export it again."


class UnsupportedFormat(FileFault):
    """A picture, but of a kind that cannot be sent."""

    code = "unsupported_format"
    hint = "Save the picture as JPEG, PNG, WebP, HEIC or TIFF and drop that."


class Truncated(FileFault):
    """The picture ends before its data does."""

    code = "truncated"
    hint = "The end of the file is missing. Copy it again from where it came from."


class Animated(FileFault):
    """The picture has more than one frame."""

    code = "animated"
    hint = "Save the one frame that you want as a PNG and drop that."


class TooManyPixels(FileFault):
    """The picture has more pixels than the limit."""

    code = "too_many_pixels"
    hint = "Scale the picture down and drop it again."


class TooLarge(FileFault):
    """The file has more bytes than the API takes."""

    code = "too_large"
    hint = (
        "Save it smaller (JPEG quality 90 is enough), or raise api.max_upload_mb if the API allows."
    )


class Unreadable(FileFault):
    """The file cannot be read."""

    code = "unreadable"
    hint = "Check the file's permissions and the disk it lies on, then retry."


class Rejected(FileFault):
    """The API answered 400, 413 or 415: it does not take this image."""

    code = "rejected"
    hint = "The API does not take this image. See http.body; export the picture afresh and retry."


class Unsafe(FileFault):
    """The API's safety check withheld the image."""

    code = "unsafe"
    hint = "The API's safety check refused this image. Sending it again will not help."


class BadResult(FileFault):
    """What was paid for came back unusable, three times."""

    code = "bad_result"
    hint = "The result was paid for but is unusable. Give the request id to the API's support."


class UnknownCharge(FileFault):
    """The API was asked and gave no usable answer; asking again may cost again."""

    code = "unknown_charge"
    hint = "The call may have been billed. `bgremover retry` sends it again, which may cost again."


class AttemptsExhausted(FileFault):
    """The API failed on this image while it succeeded on others."""

    code = "attempts_exhausted"
    hint = (
        "The API failed on this image while others went through. Retry later, or export it afresh."
    )


class CrashLoop(FileFault):
    """The program died three times while it worked on this image."""

    code = "crash_loop"
    hint = "bgremover died three times on this image. Keep it for a bug report, then remove it."


class Withdrawn(BgremoverError):
    """The original is not what it was when it was claimed: let go of it."""

    blame: ClassVar[Blame] = Blame.FILE


class Vanished(Withdrawn):
    """The original is no longer there."""

    code = "vanished"


class Replaced(Withdrawn):
    """Other bytes lie under the name now, or it is no regular file."""

    code = "replaced"


class Blocked(Withdrawn):
    """The original may not be read by this user: wait, say so, never quarantine."""

    code = "blocked"
    hint = "Give the user that runs bgremover permission to read the file."


class ServiceFault(BgremoverError):
    """The service or the way to it: the image is deferred, the fault is not the image's."""

    blame: ClassVar[Blame] = Blame.SERVICE
    hint = "Nothing to do: it is tried again by itself."


class Unreachable(ServiceFault):
    """The request was certainly not run: its body was never fully sent."""

    code = "unreachable"


class Throttled(ServiceFault):
    """The service asks to wait (408, 425, 429, or 503 with Retry-After).

    Args:
        message: What happened.
        retry_after: Seconds that the service asks to wait, if it says so.
        max_inflight: The number of requests in flight that it allows, if it says so.
        http: The answer.
    """

    code = "throttled"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        max_inflight: int | None = None,
        http: HttpAnswer | None = None,
    ) -> None:
        super().__init__(message, http=http)
        self.retry_after = retry_after
        self.max_inflight = max_inflight


class ServerFailed(ServiceFault):
    """The service failed (5xx). Not billed; counts against the image only if others succeed."""

    code = "server_failed"


class NoUsableAnswer(ServiceFault):
    """The whole body was sent and no usable answer came: the charge is unknown."""

    code = "no_usable_answer"

    def __init__(self, message: str, *, http: HttpAnswer | None = None) -> None:
        super().__init__(message, billed=Billed.UNKNOWN, http=http)


class GenerationFailed(ServiceFault):
    """An asynchronous generation ended as `failed`. Not billed; the one reason to submit again."""

    code = "generation_failed"


class LinkFailed(ServiceFault):
    """The result could not be fetched; its link lives on and is free to try again."""

    code = "link_failed"


class LinkExpired(ServiceFault):
    """The link died before the result was fetched."""

    code = "link_expired"


class LinkRefused(ServiceFault):
    """The link points where results may not be fetched from."""

    code = "link_refused"
    hint = "If the API's results moved to another host, add it to api.link_hosts."


class BrokenResult(ServiceFault):
    """What was fetched is no whole, transparent PNG."""

    code = "broken_result"


class InternalFault(ServiceFault):
    """A defect of this program met the image; counts against it only if others succeed."""

    code = "internal_error"
    hint = "This is a defect of bgremover: please report the traceback of the log."


class AccountFault(BgremoverError):
    """True of every image in the queue: the line pauses and every file stays where it is."""

    blame: ClassVar[Blame] = Blame.ACCOUNT


class KeyRefused(AccountFault):
    """401: the key is missing or wrong."""

    code = "key_refused"
    hint = "Put a valid key where `bgremover check` says it is read from; work resumes by itself."


class PaymentRequired(AccountFault):
    """402: the balance or a limit of the account is used up."""

    code = "payment_required"
    hint = "Top up the Ideogram account or raise its limit; work resumes by itself."


class Forbidden(AccountFault):
    """403: the key may not do this."""

    code = "forbidden"
    hint = "Check in the Ideogram account what this key may do; work resumes by itself."


class EndpointMoved(AccountFault):
    """A redirect, 404, 405 or 410 on the endpoint: it is not where it was."""

    code = "endpoint_moved"
    hint = "Check api.base_url, and whether there is a newer bgremover."


class ContractChanged(AccountFault):
    """Five different images in a row were refused with no success between."""

    code = "contract_changed"
    hint = "The API refuses everything: look for a newer bgremover. Nothing more is quarantined."


class BudgetReached(AccountFault):
    """The budget of the day or the month leaves no room for another call.

    Args:
        message: Which budget, how much of it is spent.
        resumes_in: Seconds until the day or the month ends.
    """

    code = "budget_reached"
    hint = "Work resumes when the day or the month ends, or when the budget is raised."

    def __init__(self, message: str, *, resumes_in: float) -> None:
        super().__init__(message)
        self.resumes_in = resumes_in


class LocalFault(BgremoverError):
    """This machine is the reason: the line pauses, what was paid for is kept."""

    blame: ClassVar[Blame] = Blame.LOCAL


class DiskFull(LocalFault):
    """No space, no inodes or no quota left."""

    code = "disk_full"
    hint = "Free space on the disk that the message names; work resumes by itself."


class ReadOnlyDisk(LocalFault):
    """The file system is mounted read-only."""

    code = "read_only"
    hint = "Mount the file system writable; work resumes by itself."


class DiskFailed(LocalFault):
    """The disk or share answered with an error."""

    code = "disk_failed"
    hint = "Check the disk or the share that the message names; work resumes by itself."


class LedgerDamaged(LocalFault):
    """The record of what was paid for cannot be read."""

    code = "ledger_damaged"
    hint = "Stop bgremover, then restore the ledger from a backup or run `bgremover rebuild`."


class FolderLost(LocalFault):
    """A folder of the configuration is gone."""

    code = "folder_lost"
    hint = "Bring the folder or its mount back; work resumes by itself."


class NoPermission(LocalFault):
    """The user that runs bgremover may not do this in the folder."""

    code = "no_permission"
    hint = "Give the user that runs bgremover write permission; work resumes by itself."


class TooManyOpenFiles(LocalFault):
    """The process or the machine is out of file descriptors or memory."""

    code = "too_many_open_files"
    hint = "Lower queue.workers or raise the limit of open files; work resumes by itself."


class SetupError(BgremoverError):
    """The configuration or the set-up is wrong: the program does not start (exit 78)."""

    code = "setup"


class AlreadyRunning(BgremoverError):
    """Another instance owns the state folder (exit 75)."""

    code = "already_running"


_BY_ERRNO: dict[int, type[LocalFault]] = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
    errno.EFBIG: DiskFull,
    errno.EROFS: ReadOnlyDisk,
    errno.EACCES: NoPermission,
    errno.EPERM: NoPermission,
    errno.EMFILE: TooManyOpenFiles,
    errno.ENFILE: TooManyOpenFiles,
    errno.ENOMEM: TooManyOpenFiles,
    errno.ENOENT: FolderLost,
    errno.ENOTDIR: FolderLost,
    errno.ENODEV: FolderLost,
}


def local_fault(error: OSError, doing: str) -> LocalFault:
    """Translate what the operating system said into the fault it is.

    Args:
        error: What a system call raised in one of the configured folders.
        doing: What was being done, with the folder: "saving into /srv/outbox".

    Returns:
        The fault of this machine; `DiskFailed` for any number without a class of its own.
    """
    fault = _BY_ERRNO.get(error.errno or 0, DiskFailed)
    return fault(f"{doing}: {error.strerror or error}")


def hint_of(code: str) -> str:
    """Return what to do about a code; empty for one that is not known or asks for nothing."""
    kinds: list[type[BgremoverError]] = [BgremoverError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if getattr(kind, "code", None) == code:
            return kind.hint
    return ""
