"""One step of one image's way: a job in, the job in its next state out.

Never sleeps, never loops. Every state that a step returns is already in the ledger, so that a
kill at any point leaves a record from which the same steps go on. What can go wrong comes back
as `Trouble`; what follows from it is decided in `core.verdict`.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal, Protocol, TypeVar, assert_never

import structlog

from bgremover import __version__
from bgremover.core.budget import Budget, Period
from bgremover.core.errors import (
    BgremoverError,
    Billed,
    Blocked,
    BrokenResult,
    BudgetReached,
    InternalFault,
    LinkExpired,
    LocalFault,
    UnknownCharge,
    Withdrawn,
)
from bgremover.core.job import (
    Accepted,
    Attempt,
    Deferred,
    Fetched,
    Job,
    Paid,
    Picture,
    Quarantined,
    Queued,
    Receipt,
    Released,
    Saved,
    Submitting,
)
from bgremover.core.naming import candidates, counted, output_path, printable
from bgremover.core.report import render
from bgremover.core.review import doubts, review_path, review_report
from bgremover.core.terms import OutputTerms
from bgremover.core.verdict import deadly
from bgremover.edges.folders import Folders, NameTaken, Temp
from bgremover.edges.ideogram import Upload
from bgremover.edges.inbox import Inbox
from bgremover.edges.ledger import CallTerms, Ledger, Scribe
from bgremover.renditions import Renderer, Renditions, recipes_of
from bgremover.timing import Clock
from bgremover.workshop import Made, Workshop

log = structlog.get_logger()
T = TypeVar("T")

TWIN = "twin"
GENERATING = "generating"
ACCEPTED = "accepted"
KNOWN = "known"
HELD = "held"
LOST = "lost"
_FIRST_POLL = 0.5
_SLOWEST_POLL = 5.0
NOTHING_PAID = Receipt(None, None, 0.0, None)
"""Of a cut-out that was made without a call: of an original that is transparent already, or of
another cut-out of the same bytes."""
RESULT_GONE = "what came back is gone: this is made of a cut-out of the original's size"


class RemovalService(Protocol):
    """The API, as the pipeline needs it: one request for each call. Raises `BgremoverError`."""

    async def submit(self, upload: Upload) -> Receipt:
        """Send an image; the receipt has no link while the generation runs."""
        ...

    async def poll(self, generation_id: str) -> Receipt | None:
        """Ask for a running generation; None while it runs."""
        ...

    async def fetch(self, link: str, into: BinaryIO) -> int:
        """Write the result to `into` and return its bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says about each image.

    Args:
        originals: archive, keep or delete.
        quarantine: Whether failed originals are moved; not when the originals are left untouched.
        price: What a call costs, in millionths of a US dollar.
        budget: What may be spent.
        unknown_sends: How often an image is sent again after an unknown charge.
        output: What cut-outs are like, where their folder does not say.
        passes: Whether originals that are transparent already are not sent.
    """

    originals: Literal["archive", "keep", "delete"]
    quarantine: bool
    price: int
    budget: Budget
    unknown_sends: int
    output: OutputTerms
    passes: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """A step that failed: the job as it is now, with the failed call among its attempts."""

    job: Job
    fault: BgremoverError


class Pipeline:
    """The steps. Holds the edges, no state of its own."""

    def __init__(
        self,
        inbox: Inbox,
        folders: Folders,
        scribe: Scribe,
        api: RemovalService,
        workshop: Workshop,
        terms: Terms,
        clock: Clock,
    ) -> None:
        self._inbox = inbox
        self._folders = folders
        self._scribe = scribe
        self._api = api
        self._terms = terms
        self._clock = clock
        self._workshop = workshop
        self._renderer = Renderer(workshop, folders)

    async def step(self, job: Job, answered: Callable[[], None]) -> Job | Trouble:
        """Bring `job` one state further.

        Args:
            job: In any state that is not at rest.
            answered: Called when the API has done what it was asked for, before that is written
                down: nothing of this image is in flight there any more.

        Returns:
            The job in its next state, which the ledger holds already; or what went wrong.
        """
        try:
            return await self._advance(job, answered)
        except BgremoverError as fault:
            return Trouble(job, fault)
        except Exception as error:
            log.exception("image.stumbled", job=job.id, file=printable(job.path))
            return Trouble(job, InternalFault(f"{type(error).__name__} in {job.state.kind}"))

    async def _advance(self, job: Job, answered: Callable[[], None]) -> Job | Trouble:
        match job.state:
            case Queued():
                if job.picture is None:
                    return await self._prepare(job)
                return await self._send(job, answered)
            case Accepted() as state:
                return await self._poll(job, state)
            case Paid() as state:
                return await self._fetch(job, state)
            case Fetched() as state:
                return await self._publish(job, state)
            case Saved() as state:
                return await self._file(job, state)
            case Quarantined() as state:
                return await self._quarantine(job, state)
            case Submitting() | Deferred() | Released():
                raise ValueError(f"nothing to do for a job that is {job.state.kind}")
            case _:
                assert_never(job.state)

    async def work_alone(self, job_id: str | None) -> None:
        """Note that only this job is worked on, so that only it is blamed if the program dies."""
        with contextlib.suppress(LocalFault):  # the step meets the same disk, and tells of it
            await self._scribe.do(lambda ledger: ledger.work_alone(job_id), durable=False)

    async def record(self, job: Job) -> Job:
        """Write `job` into the ledger; a released one is forgotten."""
        now = self._clock.wall()
        if isinstance(job.state, Released):
            await self._scribe.do(lambda ledger: ledger.forget(job.id), durable=False)
        else:

            def write(ledger: Ledger) -> None:
                ledger.put(job, now)
                ledger.end_open_call(job)

            await self._scribe.do(write)
        return job

    # --- before the money -------------------------------------------------------------------

    async def _prepare(self, job: Job) -> Job:
        now = self._clock.wall()

        def write(ledger: Ledger) -> tuple[bool, int]:
            # A picture that kills the decoder must be known when its third kill is counted.
            ledger.put(replace(job, taken=True), now)
            return _failed_before(ledger, job), ledger.sequence()

        known, checked = await self._scribe.do(write, durable=False)
        if known:
            return await self.record(job.to(Released(KNOWN)))
        asked = await asyncio.to_thread(self._asked, job)
        if asked is None:
            return await self.record(job.to(Released(HELD)))
        picture = await self._workshop.look(self._original(job))
        job = replace(asked, picture=picture, checked=checked)
        waits = not self._passes(picture)

        def seek(ledger: Ledger) -> tuple[list[Job], list[Receipt]]:
            # From here on it waits: it is not to blame if the program dies meanwhile.
            found = _earlier(ledger, job, picture)
            if waits and not any(found):
                ledger.put(job, now)
            return found

        earlier, receipts = await self._scribe.do(seek, durable=False)
        if reused := await self._reuse(job, earlier, receipts):
            return reused
        if not waits:
            return await self._pass_on(job, picture)
        if earlier or receipts:
            await self._scribe.do(lambda ledger: ledger.put(job, now), durable=False)
        return job

    def _asked(self, job: Job) -> Job | None:
        """Return the job with what its folder asks of its cut-out now.

        Returns:
            None when what the folder says is wrong, and no call for it may have cost anything:
            the image is found again when it is mended. Else the job as it was.
        """
        held = self._inbox.terms(job.path)
        if held.held is not None:
            return job if job.billed_calls or job.unknown_calls else None
        return replace(job, terms=held.output.over(self._terms.output))

    def _agreed(self, job: Job) -> OutputTerms:
        return job.terms or self._terms.output  # what `rebuild` has found has none

    async def take_up(self, job: Job) -> None:
        """Note that an image that was put off is worked on again."""
        now, taken = self._clock.wall(), replace(job, taken=True)
        with contextlib.suppress(LocalFault):  # the step meets the same disk, and tells of it
            await self._scribe.do(lambda ledger: ledger.put(taken, now), durable=False)

    def _original(self, job: Job) -> Callable[[], BinaryIO]:
        return lambda: self._inbox.open(job.path, job.identity)

    def _passes(self, picture: Picture) -> bool:
        return self._terms.passes and picture.transparent

    async def _pass_on(self, job: Job, picture: Picture) -> Job:
        """Make the cut-out of an original that has no background any more: nothing is paid."""
        async with self._temp(job) as temp:
            terms = self._agreed(job)
            made = await self._workshop.pass_on(self._original(job), picture, temp.file, terms)
            return await self._keep(job, NOTHING_PAID, temp, made)

    async def _reuse(self, job: Job, earlier: list[Job], receipts: list[Receipt]) -> Job | None:
        """Serve the image from what was paid for the same bytes before, if that is possible."""
        found: list[Receipt | None] = [*receipts]
        for one in sorted(earlier, key=lambda one: (not _own(one, job), not self._fits(one, job))):
            if not isinstance(one.state, Saved):
                continue
            if reused := await self._reuse_one(job, one, one.state):
                return reused
            found.append(one.state.receipt)
        return self._paid_before(job, found)

    def _fits(self, earlier: Job, job: Job) -> bool:
        """Tell whether an earlier cut-out is as this image's is to be.

        Its own always is: what lies there already stays as it is, and twins that stay in the
        inbox would else copy each other's at each run.
        """
        return _own(earlier, job) or self._agreed(earlier).serves(self._agreed(job))

    async def _reuse_one(self, job: Job, earlier: Job, cut_out: Saved) -> Job | None:
        same_home = earlier.home == job.home
        source = os.path.join("" if same_home else earlier.home.outbox, cut_out.output)
        if _own(earlier, job):
            there = await asyncio.to_thread(
                self._folders.verify_published, source, cut_out.sha256, cut_out.size
            )
            return await self._reused(job, earlier, cut_out) if there else None
        file = await asyncio.to_thread(self._folders.cut_out, source, cut_out.size)
        if file is None:
            return None
        with file:
            # What is put aside needs the report of what was measured, which was not kept.
            aside = self._agreed(job).review == "move" and cut_out.doubts
            if aside or not self._fits(earlier, job):
                return await self._make_anew(job, file, earlier, cut_out)
            output = await self._serve_copy(job, file, cut_out)
        if output is None:
            return None
        return await self._reused(job, earlier, replace(cut_out, output=output))

    async def _reused(self, job: Job, earlier: Job, cut_out: Saved) -> Job:
        terms = self._agreed(job)
        doubts = () if terms.review == "off" else cut_out.doubts
        saved = replace(cut_out, doubts=doubts, reused=True, filed=False, left=False)
        # What it was made by stays known, for those who are served with it.
        terms = replace(self._agreed(earlier), renditions=terms.renditions)
        return await self.record(replace(job, terms=terms).to(saved))

    async def _make_anew(
        self, job: Job, file: BinaryIO, earlier: Job, cut_out: Saved
    ) -> Job | None:
        """Make the cut-out of one that was made of the same bytes by other terms.

        Of a copy of its own: what lies in the outbox may be written to at any moment. Not of the
        link: that may be dead before its time, and to pay once more is no way to serve
        what is there.
        """
        terms, made_by, picture = self._agreed(job), self._agreed(earlier), job.picture
        if picture is None:
            return None
        own = await asyncio.to_thread(self._workshop.own_copy, file, cut_out.sha256)
        if own is None:
            return None
        with own:
            async with self._temp(job) as temp:
                original, made_of = self._original(job), (own, made_by)
                made = await self._workshop.make_anew(original, picture, made_of, temp.file, terms)
                if (made_by.resolution, terms.resolution) == ("original", "result"):
                    made = replace(made, notes=(RESULT_GONE, *made.notes))
                return await self._keep(job, NOTHING_PAID, temp, made)

    def _paid_before(self, job: Job, receipts: list[Receipt | None]) -> Job | None:
        now = self._clock.wall()
        alive = (one for one in receipts if one is not None and one.link and one.expires_at > now)
        receipt = next(alive, None)
        return None if receipt is None else job.to(Paid(receipt))

    async def _serve_copy(self, job: Job, file: BinaryIO, cut_out: Saved) -> str | None:
        """Return where a copy lies now; None when the earlier cut-out is not what it was."""
        copied: bool | None = None
        while copied is None:
            output = await self._reserve(job, output_path(job.path))
            with contextlib.suppress(NameTaken):
                copied = await asyncio.to_thread(
                    self._folders.copy_into, file, output, job.id, cut_out.sha256
                )
            if copied:
                return output
            await self._scribe.do(lambda ledger: ledger.unreserve(job.id))
        return None

    async def _reserve(self, job: Job, wished: str) -> str:
        return await self._scribe.do(lambda ledger: self._reserve_in(ledger, job, wished))

    def _reserve_in(self, ledger: Ledger, job: Job, wished: str | None = None) -> str:
        names = candidates(wished or output_path(job.path), self._folders.longest_name())
        return ledger.reserve(job, names, self._folders.taken)

    # --- the money --------------------------------------------------------------------------

    async def _send(self, job: Job, answered: Callable[[], None]) -> Job | Trouble:
        picture = job.picture
        if picture is None:
            raise ValueError("an image is inspected before it is sent")
        if job.unknown_calls > self._terms.unknown_sends:
            calls = counted(job.unknown_calls, "call")
            raise UnknownCharge(
                f"{calls} for this image ended without a usable answer", billed=Billed.UNKNOWN
            )
        asked, original = await asyncio.to_thread(self._readied, job, picture)
        if asked is None:
            return await self.record(job.to(Released(HELD)))
        if original is None:
            return await self._pass_on(asked, picture)
        with original:
            if picture.converted:
                await self.take_up(asked)
            name = job.path.rpartition("/")[2]
            async with self._workshop.upload(original, picture, name) as upload:
                return await self._pay(asked, upload, answered)

    def _readied(self, job: Job, picture: Picture) -> tuple[Job | None, BinaryIO | None]:
        """Ask the folder again, and open what is to be sent: all that can be wrong before paying.

        Returns:
            As `_asked`; and the original, unless it is passed on: the configuration has changed
            since it was looked at.
        """
        asked = self._asked(job)
        if asked is None or self._passes(picture):
            return asked, None
        self._folders.check_room(output_path(job.path), 4 * picture.width * picture.height)
        return asked, self._inbox.open(job.path, job.identity)

    async def _pay(self, job: Job, upload: Upload, answered: Callable[[], None]) -> Job | Trouble:
        terms = CallTerms(self._terms.price, self._terms.budget, self._clock.local_day())
        now = self._clock.wall()
        intent = await self._scribe.do(lambda ledger: ledger.begin_call(job, terms, now))
        if intent.reached is not None:
            raise self._budget_reached(intent.reached)
        if intent.call_id is None:
            return replace(job, picture=None).to(Deferred(now + 60, Queued(), TWIN))
        job = job.to(Submitting(intent.call_id))
        more = {"note": upload.note} if upload.note else {}
        log.info("image.submitted", job=job.id, file=printable(job.path), bytes=upload.size, **more)
        began = self._clock.steady()
        try:
            receipt = await self._api.submit(upload)
        except BgremoverError as fault:
            attempt = self._attempt(job, now, began, fault=fault)
            ended = await self._ended(job, intent.call_id, attempt)
            return ended if isinstance(ended, Trouble) else Trouble(ended, fault)
        if receipt.link is not None:
            answered()
        attempt = self._attempt(job, now, began, receipt=receipt)
        state = Accepted(receipt) if receipt.link is None else Paid(receipt)
        return await self._ended(job.to(state), intent.call_id, attempt)

    def _budget_reached(self, period: Period) -> BudgetReached:
        limits = {"day": self._terms.budget.per_day, "month": self._terms.budget.per_month}
        usd = (limits[period] or 0) / 1_000_000
        return BudgetReached(
            f"the budget of ${usd:.2f} a {period} leaves no room for another call",
            resumes_in=self._clock.until_next(period),
        )

    def _attempt(
        self,
        job: Job,
        at: float,
        began: float,
        *,
        receipt: Receipt | None = None,
        fault: BgremoverError | None = None,
    ) -> Attempt:
        http = fault.http if fault else None
        outcome = fault.code if fault else "paid"
        billed = fault.billed if fault else Billed.YES
        if receipt is not None and receipt.link is None:
            outcome, billed = ACCEPTED, Billed.NO
        return Attempt(
            number=len(job.attempts) + 1,
            at=at,
            outcome=outcome,
            status=http.status if http else (200 if receipt else None),
            request_id=receipt.request_id if receipt else (http.request_id if http else None),
            seconds=round(self._clock.steady() - began, 3),
            billed=billed,
        )

    async def _ended(self, job: Job, call_id: int, attempt: Attempt) -> Job | Trouble:
        job = replace(job, attempts=(*job.attempts, attempt))
        now = self._clock.wall()

        def write(ledger: Ledger) -> None:
            if attempt.outcome != ACCEPTED:
                ledger.end_call(
                    call_id,
                    billed=attempt.billed,
                    outcome=attempt.outcome,
                    status=attempt.status,
                    request_id=attempt.request_id,
                    seconds=attempt.seconds,
                )
            ledger.put(job, now)

        # A stop that comes now must not cost the receipt: the write is finished all the same.
        try:
            await asyncio.shield(self._scribe.do(write))
        except LocalFault as fault:
            # It goes on with what is in memory: asked for again, it would be paid for again.
            return Trouble(job, fault)
        if attempt.billed is Billed.YES:
            log.info(
                "image.paid",
                job=job.id,
                file=printable(job.path),
                usd=self._terms.price / 1_000_000,
                request_id=attempt.request_id,
                seconds=attempt.seconds,
            )
        return job

    async def _poll(self, job: Job, state: Accepted) -> Job | Trouble:
        began, now = self._clock.steady(), self._clock.wall()
        if now >= state.receipt.expires_at:
            raise UnknownCharge(
                "the generation was accepted and never told its end", billed=Billed.UNKNOWN
            )
        call = await self._scribe.do(lambda ledger: ledger.last_call(job.id), durable=False)
        call_id = call.id if call else 0
        try:
            receipt = await self._api.poll(state.receipt.generation_id or "")
        except BgremoverError as fault:
            if fault.code != "generation_failed":
                raise
            attempt = self._attempt(job, now, began, fault=fault)
            ended = await self._ended(job.to(Deferred(now, Queued(), fault.code)), call_id, attempt)
            return ended if isinstance(ended, Trouble) else Trouble(ended, fault)
        if receipt is None:
            wait = min(_FIRST_POLL * 1.5**state.polls, _SLOWEST_POLL)
            again = Accepted(state.receipt, state.polls + 1)
            return job.to(Deferred(now + wait, again, GENERATING))
        attempt = self._attempt(job, now, began, receipt=receipt)
        return await self._ended(job.to(Paid(receipt)), call_id, attempt)

    # --- after the money --------------------------------------------------------------------

    async def _fetch(self, job: Job, state: Paid) -> Job:
        link = state.receipt.link
        if link is None or state.receipt.expires_at <= self._clock.wall():
            raise LinkExpired("the link died before the result was fetched", billed=Billed.YES)
        result, temp = await asyncio.to_thread(self._places, job)
        with result:
            async with _kept_or_removed(temp):
                made = await self._made(job, link, result, temp.file)
                return await self._keep(job, state.receipt, temp, made)

    def _places(self, job: Job) -> tuple[BinaryIO, Temp]:
        """Make a file for the result, and one beside the job's cut-out."""
        result = self._workshop.scratch()
        try:
            return result, self._folders.temp(output_path(job.path), job.id)
        except BaseException:
            result.close()
            raise

    @contextlib.asynccontextmanager
    async def _temp(self, job: Job) -> AsyncIterator[Temp]:
        """Yield a file beside the job's cut-out; removed unless `_keep` was come to its end."""
        temp = await asyncio.to_thread(self._folders.temp, output_path(job.path), job.id)
        async with _kept_or_removed(temp):
            yield temp

    async def _made(self, job: Job, link: str, result: BinaryIO, into: BinaryIO) -> Made:
        if job.picture is None:
            raise ValueError("an image is looked at before it is paid for")
        await self._api.fetch(link, result)
        try:
            return await self._workshop.cut_out(
                self._original(job), job.picture, result, into, self._agreed(job)
            )
        except BrokenResult as fault:
            fault.billed = Billed.YES
            raise

    async def _keep(self, job: Job, receipt: Receipt, temp: Temp, made: Made) -> Job:
        asked = self._agreed(job).review
        found = doubts(made.stats) if asked != "off" else []
        await asyncio.to_thread(temp.keep)
        now, wished, review = self._clock.wall(), output_path(job.path), ""
        if found and asked == "move":
            report = review_report(job.path, found, made.stats, at=now, version=__version__)
            wished, review = review_path(wished), render(report).decode()
            await asyncio.to_thread(self._folders.move_temp, output_path(job.path), wished, job.id)
        note = job.picture.note if job.picture else ""
        notes = (note, *made.notes) if note else made.notes
        told = tuple(f"{doubt.code}: {doubt.message}" for doubt in found)

        def write(ledger: Ledger) -> Job:
            ledger.unreserve(job.id)  # an earlier result may have been wished for elsewhere
            output = self._reserve_in(ledger, job, wished)
            state = Fetched(receipt, output, made.sha256, made.size, notes, told, review)
            fetched = job.to(state)
            ledger.put(fetched, now)
            ledger.end_open_call(fetched)
            return fetched

        return await self._scribe.do(write)

    async def _publish(self, job: Job, state: Fetched) -> Job:
        try:
            found = await asyncio.to_thread(self._folders.publish, job.id, state.output)
        except NameTaken:
            return await self._rename(job, state)
        if not found and not await asyncio.to_thread(
            self._folders.verify_published, state.output, state.sha256, state.size
        ):
            return await self._made_again(job, state)
        # Not written down before the original is filed: a kill in between is found out by
        # `verify_published`, and one commit is saved.
        return job.to(_saved(state))

    async def _made_again(self, job: Job, state: Fetched) -> Job:
        """Go back to where the cut-out was made: its file was lost before it was published."""
        if state.receipt == NOTHING_PAID:
            again = Deferred(self._clock.wall(), Queued(), LOST)
            return await self.record(replace(job, picture=None).to(again))
        return await self.record(job.to(Paid(state.receipt)))

    async def _rename(self, job: Job, state: Fetched) -> Job:
        if await asyncio.to_thread(
            self._folders.verify_published, state.output, state.sha256, state.size
        ):
            return job.to(_saved(state))
        now = self._clock.wall()

        def write(ledger: Ledger) -> Job:
            ledger.unreserve(job.id)
            other = self._reserve_in(ledger, job, state.output)
            renamed = replace(job, state=replace(state, output=other))
            ledger.put(renamed, now)
            return renamed

        return await self._scribe.do(write)

    # --- the original -----------------------------------------------------------------------

    async def _file(self, job: Job, state: Saved) -> Job:
        if state.review:
            await self._put_review(job, state)
        made = await self._rendered(job, state)
        left = await self._moved_off(job, lambda job: self._file_original(job, state.doubts))
        notes = (*state.notes, *made.notes)
        filed = replace(
            state, filed=True, left=left, notes=notes, review="", renditions=made.outputs
        )
        return await self.record(job.to(filed))

    async def _rendered(self, job: Job, state: Saved) -> Renditions:
        recipes = recipes_of(self._agreed(job))
        if deadly(job):
            await asyncio.to_thread(self._renderer.discard, job, state.output, recipes)
            return Renditions(notes=("no renditions: the program died over this image",))
        return await self._renderer.make(job, state.output, self._original(job), recipes)

    async def _put_review(self, job: Job, state: Saved) -> None:
        content = state.review.encode()
        with contextlib.suppress(NameTaken):  # somebody's own file of that name stays
            await asyncio.to_thread(
                self._folders.write_beside, state.output, ".review.json", content, job.id
            )

    def _file_original(self, job: Job, doubts: tuple[str, ...]) -> bool:
        """Do what holds for the original's folder; return whether it stays, unlike the others."""
        held = self._inbox.terms(job.path)
        wanted = "keep" if held.held else held.originals or self._terms.originals
        if wanted == "delete" and doubts:
            # A cut-out that a person has to look at does not stand for it. Where everything else
            # is kept there is no archive.
            wanted = "keep" if self._terms.originals == "keep" else "archive"
        match wanted:
            case "archive":
                self._folders.archive(job.path, job.identity, job.id)
            case "delete":
                self._folders.delete(job.path, job.identity, job.id)
            case "keep":
                return self._terms.originals != "keep"
            case never:
                assert_never(never)
        return False

    async def _moved_off(self, job: Job, move: Callable[[Job], bool]) -> bool:
        """Run `move` on the original; return whether the original stays where it is."""
        told = log.bind(job=job.id, file=printable(job.path))
        try:
            return await asyncio.to_thread(move, job)
        except Blocked as fault:
            told.warning("image.left", message=fault.message, hint=fault.hint)
            return True
        except Withdrawn as change:
            told.debug("image.withdrawn", why=change.code)
        return False

    async def _quarantine(self, job: Job, state: Quarantined) -> Job:
        if job.billed_calls or job.crashes:
            await asyncio.to_thread(self._folders.discard_temp, output_path(job.path), job.id)
        if not self._terms.quarantine:
            return await self.record(job.to(replace(state, filed=True, left=True)))
        if not state.name:
            name = await asyncio.to_thread(self._folders.quarantine_name, job.path)
            return await self.record(job.to(replace(state, name=name)))
        report = state.report.encode()

        def move(job: Job) -> bool:
            self._folders.quarantine(job.path, job.identity, report, state.name, job.id)
            return False

        try:
            left = await self._moved_off(job, move)
        except NameTaken:
            return await self.record(job.to(replace(state, name="")))
        return await self.record(job.to(replace(state, filed=True, left=left)))


def _own(earlier: Job, job: Job) -> bool:
    return (earlier.home, earlier.path) == (job.home, job.path)


@contextlib.asynccontextmanager
async def _kept_or_removed(temp: Temp) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await asyncio.to_thread(temp.remove)
        raise


def _saved(state: Fetched) -> Saved:
    receipt = None if state.receipt == NOTHING_PAID else state.receipt
    return Saved(
        state.output,
        state.sha256,
        state.size,
        receipt,
        notes=state.notes,
        doubts=state.doubts,
        review=state.review,
    )


def _earlier(ledger: Ledger, job: Job, picture: Picture) -> tuple[list[Job], list[Receipt]]:
    """Return the cut-outs that were made of the same bytes, and the receipts that nobody uses."""
    return ledger.cut_outs(picture.sha256), ledger.receipts(picture.sha256, job.home)


def _failed_before(ledger: Ledger, job: Job) -> bool:
    """Tell whether this very file failed, may have cost money, and had to stay in the inbox.

    It is found again after each start, and would cost again.
    """
    match ledger.done_at(job.path, job.home):
        case Job(state=Quarantined(left=True)) as done:
            charged = done.billed_calls or done.unknown_calls
            return bool(charged) and done.identity.same_content(job.identity)
        case _:
            return False
