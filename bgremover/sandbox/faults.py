"""What can be made to go wrong: faults as data, applied to the next requests in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, TypeAdapter

Target = Literal["post", "poll", "download"]
BadAnswer = Literal["html", "half_json", "no_url", "huge"]
BadContent = Literal["empty", "truncated", "garbage", "html", "jpeg", "no_alpha", "tiny"]


class _Fault(BaseModel):
    """What every fault may say.

    Args:
        match: Only requests about files with this in their name; empty: any.
        times: How many requests it applies to.
        delay: Seconds to wait first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = ""
    times: PositiveInt | Literal["forever"] = 1
    delay: NonNegativeFloat = 0.0


class Slow(_Fault):
    """The right answer, but late."""

    delay: NonNegativeFloat


class Status(_Fault):
    """An answer with this status. Of a POST that is `billed`, the work goes on all the same."""

    status: int
    headers: dict[str, str] = {}
    body: str | dict[str, Any] = ""
    billed: bool = False


class Drop(_Fault):
    """The connection is dropped without an answer.

    before_body: once the file's name is known, the rest of the body unread. A client whose whole
    body fits into the buffers between (some hundred kilobytes) may have sent it by then.
    after_body: once all has been read. Of a POST that is `billed`, the work goes on all the same.
    """

    close: Literal["before_body", "after_body"]
    billed: bool = False


class Spoiled(_Fault):
    """A 200 whose body is of no use; the work is done and billed."""

    answer: BadAnswer


class Cut(_Fault):
    """The connection is dropped half-way through the announced length."""

    close: Literal["midway"]


class Content(_Fault):
    """A complete download of something else than the cut-out."""

    content: BadContent


class Drip(_Fault):
    """The right bytes, 64 at a time, with this many seconds between."""

    drip: NonNegativeFloat


Fault = Slow | Status | Drop | Spoiled | Cut | Content | Drip
_OF_API = TypeAdapter(list[Status | Drop | Spoiled | Slow])
_KINDS: dict[Target, TypeAdapter[Any]] = {
    "post": _OF_API,
    "poll": _OF_API,
    "download": TypeAdapter(list[Status | Cut | Content | Drip | Slow]),
}


def read_faults(target: Target, body: bytes) -> list[Fault]:
    """Read a JSON list of faults.

    Raises:
        ValueError: It is no such list, or one of them cannot befall the target.
    """
    faults: list[Fault] = _KINDS[target].validate_json(body)
    return faults


@dataclass(slots=True)
class _Waiting:
    fault: Fault
    left: int | None


class Script:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._waiting: dict[Target, list[_Waiting]] = {"post": [], "poll": [], "download": []}

    def add(self, target: Target, faults: Sequence[Fault]) -> None:
        """Let `faults` befall the next requests of the target, in order."""
        self._waiting[target] += [
            _Waiting(fault, None if fault.times == "forever" else fault.times) for fault in faults
        ]

    def clear(self) -> None:
        """Forget all faults: the outage is over."""
        for waiting in self._waiting.values():
            waiting.clear()

    def take(self, target: Target, name: str) -> Fault | None:
        """Return the fault that befalls this request about the file `name`, and use it up."""
        queue = self._waiting[target]
        hit = next((entry for entry in queue if entry.fault.match in name), None)
        if hit is None:
            return None
        if hit.left is not None:
            hit.left -= 1
            if hit.left == 0:
                queue.remove(hit)
        return hit.fault
