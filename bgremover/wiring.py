"""Builds the daemon from the settings: the only place that knows every part."""

import functools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bgremover import __version__
from bgremover.affinity import Affinity
from bgremover.attendants import Attendants, hire
from bgremover.core.budget import Budget, micro
from bgremover.core.errors import KeyRefused, SetupError
from bgremover.core.ignoring import Ignore
from bgremover.core.job import CONFIGURED, Home, Job
from bgremover.core.observed import PHASES
from bgremover.core.pacing import Pace
from bgremover.core.settling import Patience
from bgremover.core.terms import OutputTerms
from bgremover.core.verdict import Rules
from bgremover.daemon import Parts, Standing, rest
from bgremover.dispatcher import Dispatcher, Size
from bgremover.edges import mounts
from bgremover.edges.folders import Folders, Roots
from bgremover.edges.ideogram import SLOWEST_BYTES_PER_SECOND, ApiOptions, Ideogram
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.edges.ledger import Ledger, Scribe
from bgremover.edges.pictures import whole
from bgremover.edges.supervisor import Notifier, StatusSocket
from bgremover.intake import Intake, Rhythm
from bgremover.key import KeySource
from bgremover.lookout import Lookout, Watching
from bgremover.pipeline import Pipeline, Terms
from bgremover.reading import parse_override
from bgremover.settings import Settings
from bgremover.studio.intake import Limits
from bgremover.timing import Clock
from bgremover.workshop import Craft, Workshop

CLOSED_SECONDS = 0.5
"""How long a file must be unchanged that is certainly closed and whole."""

MOST_PREPARING = 8
MOST_FINISHING = 16
"""Images, and results, that are worked on at a time: more would only wait for their turn in the
workshop, and of images that are taken up more would be suspects if the program died."""

STEP_SECONDS = 600.0
"""How long a step may take beside its calls: a NAS that spins up, a fetch with its deadline."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run works on.

    Args:
        inbox: The folder the images lie in.
        only: Names in the folder to take; None takes all.
        originals: archive, keep or delete.
        quarantine: Whether failed originals are moved.
        watch: Whether new files are waited for.
        home: Whose jobs of the ledger are resumed.
    """

    inbox: Path
    originals: Literal["archive", "keep", "delete"]
    quarantine: bool = True
    watch: bool = True
    only: frozenset[str] | None = None
    home: Home = CONFIGURED


def open_api(settings: Settings, key: KeySource, clock: Clock) -> Ideogram:
    """Return the API client; the key is read afresh for each request."""
    api = settings.api
    options = ApiOptions(
        base_url=api.base_url,
        flow=api.flow,
        connect_timeout_seconds=api.connect_timeout_seconds,
        read_timeout_seconds=api.read_timeout_seconds,
        link_hosts=tuple(api.link_hosts),
        ca_bundle=str(api.ca_bundle) if api.ca_bundle else None,
        proxy=api.proxy.get_secret_value() if api.proxy else None,
    )
    return Ideogram(options, lambda: _present(key), clock.wall)


def _present(key: KeySource) -> str:
    try:
        return key.read().get_secret_value()
    except SetupError as fault:  # while it runs: the line pauses until the key is back
        raise KeyRefused(fault.message) from fault


def open_inbox(settings: Settings, work: Work) -> Inbox:
    """Return the inbox edge; the read-lease test only where leases can be trusted."""
    own = work.home == CONFIGURED
    override = functools.partial(parse_override, given=settings)
    return Inbox(
        work.inbox,
        Ignore(tuple(settings.watch.ignore)),
        recursive=settings.watch.recursive and work.only is None,
        leases=_is_local(work.inbox),
        whole=whole,
        # What lies in folders that only are a source must not decide what becomes of originals.
        marker=settings.watch.marker if own else None,
        override=override if own else None,
    )


def open_folders(settings: Settings, inbox: Inbox) -> Folders:
    """Return the edge that writes into the users' folders."""
    folders = settings.folders
    outbox, quarantine, archive = map(
        os.path.realpath, (folders.outbox, folders.quarantine, folders.archive)
    )
    return Folders(Roots(outbox, quarantine, archive), inbox.holding)


def limits(settings: Settings) -> Limits:
    """Return what is taken."""
    return Limits(
        max_upload_bytes=micro(settings.api.max_upload_mb),
        max_pixels=micro(settings.input.max_megapixels),
        oversize=settings.input.oversize,
    )


def workshop(settings: Settings, affinity: Affinity) -> Workshop:
    """Return where pictures are worked on."""
    return Workshop(
        Craft(
            limits=limits(settings),
            memory=micro(settings.pictures.max_memory_mb),
            scratch=str(settings.folders.state),
        ),
        affinity,
    )


def output_terms(settings: Settings) -> OutputTerms:
    """Return what cut-outs are like where their folder does not say."""
    output = settings.output
    return OutputTerms(output.resolution, output.metadata, output.review, output.renditions)


def _is_local(folder: Path) -> bool:
    below = mounts.mounts_under(os.path.realpath(folder), mounts.read_mounts())
    return all(mounts.trustworthy(mount.fs_type) for mount in below)


def count_files(settings: Settings, work: Work) -> int:
    """Return how many files `work` would take."""
    inbox = open_inbox(settings, work)
    if work.only is None:
        return inbox.sweep(lambda _path, _identity: True, 0).files
    return len(inbox.look(work.only))


def patience(settings: Settings, work: Work) -> Patience:
    """Return how long files are waited for."""
    watch = settings.watch
    sure = CLOSED_SECONDS if _is_local(work.inbox) else watch.settle_seconds
    return Patience(
        settle_seconds=watch.settle_seconds,
        closed_seconds=min(sure, watch.settle_seconds),
        incomplete_seconds=watch.incomplete_minutes * 60,
    )


def build(
    settings: Settings, work: Work, key: KeySource, told: Callable[[Job], None] | None = None
) -> Parts:
    """Build all parts for one run.

    Args:
        settings: The configuration.
        work: What the run works on.
        key: Where the key is read from.
        told: Called with each job that has come to rest, for the progress bar.

    Returns:
        The parts. The ledger and the API client are closed by the daemon that runs them.
    """
    clock = Clock()
    state = Path(settings.folders.state)
    inbox = open_inbox(settings, work)
    folders = open_folders(settings, inbox)
    api = open_api(settings, key, clock)
    scribe = Scribe(Ledger(state))
    affinity = Affinity(wanted=settings.queue.share_core, steady=clock.steady)
    terms = _terms(settings, work)
    listeners: list[Callable[[Job], None]] = [told] if told else []

    def tell(job: Job) -> None:
        for listener in listeners:
            listener(job)

    dispatcher = Dispatcher(
        Pipeline(inbox, folders, scribe, api, workshop(settings, affinity), terms, clock),
        pace=_pace(settings),
        rules=_rules(settings),
        size=_size(settings),
        clock=clock,
        chance=random.random,
        version=__version__,
        price_usd=settings.api.price_usd,
        unknown_sends=terms.unknown_sends,
        told=tell,
        home=work.home,
    )
    intake = Intake(
        inbox,
        patience(settings, work),
        clock,
        _claim(dispatcher, work),
        rhythm=Rhythm(settings.watch.rescan_seconds, settings.watch.poll_seconds),
        trust_ctime=_is_local(work.inbox),
    )
    dispatcher.intake = intake
    kept = work.originals == "keep"
    listeners.append(rest(intake, kept=kept))
    lookout = Lookout(inbox, intake, _watching(settings), dispatcher.inbox_trouble)
    listen = settings.http.listen if work.watch else None
    standing = Standing(dispatcher, intake, lookout, clock, step_limits(settings), listen)
    attendants = Attendants()
    if work.watch:
        attendants, listener = hire(settings, standing, scribe, clock)
        listeners.append(listener)
    return Parts(
        home=work.home,
        kept=kept,
        key_version=key.version,
        scribe=scribe,
        folders=folders,
        api=api,
        dispatcher=dispatcher,
        intake=intake,
        lookout=lookout,
        clock=clock,
        standing=standing,
        socket=StatusSocket(state, standing.live),
        attendants=attendants,
        notifier=Notifier(),
        affinity=affinity,
    )


def step_limits(settings: Settings) -> dict[str, float]:
    """Return how long a step of each phase may take before it counts as hanging, in seconds.

    A call may take as long as its own deadlines allow (`edges.ideogram`), or a slow upload would
    end in a restart, and that in an unknown charge.
    """
    api = settings.api
    sending = micro(api.max_upload_mb) / SLOWEST_BYTES_PER_SECOND
    call = 3 * api.connect_timeout_seconds + sending + api.read_timeout_seconds
    return dict.fromkeys(PHASES, STEP_SECONDS) | {"call": call + STEP_SECONDS}


def _terms(settings: Settings, work: Work) -> Terms:
    budget = settings.budget
    return Terms(
        originals=work.originals,
        quarantine=work.quarantine,
        price=micro(settings.api.price_usd),
        budget=Budget(_micro_or_none(budget.per_day_usd), _micro_or_none(budget.per_month_usd)),
        unknown_sends=1 if settings.retry.unknown_charge == "retry" else 0,
        passes=settings.input.already_transparent == "pass",
        output=output_terms(settings),
    )


def _size(settings: Settings) -> Size:
    workers = settings.queue.workers
    return Size(
        settings.queue.capacity,
        prepare=min(max(2, workers), MOST_PREPARING),
        finish=min(max(4, workers), MOST_FINISHING),
    )


def _micro_or_none(usd: float | None) -> int | None:
    return None if usd is None else micro(usd)


def _claim(dispatcher: Dispatcher, work: Work) -> Callable[[Sighting], bool]:
    only = work.only

    def claim(sighting: Sighting) -> bool:
        # What is not asked for is taken out of the intake's hands and left alone.
        if only is not None and sighting.path not in only:
            return True
        return dispatcher.claim(sighting)

    return claim


def _watching(settings: Settings) -> Watching:
    watch = settings.watch
    return Watching(watch.backend, watch.recursive, watch.poll_seconds, watch.rescan_seconds)


def _pace(settings: Settings) -> Pace:
    retry = settings.retry
    return Pace(settings.queue.workers, retry.base_seconds, retry.cap_seconds)


def _rules(settings: Settings) -> Rules:
    retry = settings.retry
    return Rules(retry.max_attempts, retry.base_seconds, retry.cap_seconds)
