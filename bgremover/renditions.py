"""Renditions of a cut-out, put beside it: all of them or none, and nothing is overwritten."""

import asyncio
import contextlib
import errno
from contextlib import ExitStack
from dataclasses import dataclass

from bgremover.core.errors import Blocked, DiskFailed, FileFault, LocalFault, Withdrawn
from bgremover.core.job import Job
from bgremover.core.naming import candidates, printable
from bgremover.core.recipe import Recipe, recipe_of, target_of
from bgremover.core.terms import OutputTerms
from bgremover.edges.folders import Folders, NameTaken, Temp
from bgremover.studio.intake import area
from bgremover.studio.opening import NotDecoded
from bgremover.studio.render import Sources
from bgremover.workshop import Opened, Rendition, Workshop

_REFUSED = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
"""What file systems say of names that they do not take."""


@dataclass(frozen=True, slots=True)
class Renditions:
    """What was made: where each lies in the outbox, and what to know.

    Args:
        outputs: Their names.
        notes: What was not done as asked; when something could not be made at all, nothing was,
            unless a name is refused at the last moment.
        fresh: How many of them did not lie there already.
    """

    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class _Drawn:
    temp: Temp
    owner: str
    target: str
    done: Rendition


def recipes_of(terms: OutputTerms) -> tuple[Recipe, ...]:
    """Return what is made of a cut-out besides it."""
    return tuple(map(recipe_of, terms.renditions))


class Renderer:
    """Draws what the recipes ask for and publishes it.

    Args:
        workshop: Where it is drawn.
        folders: Where it goes.
    """

    def __init__(self, workshop: Workshop, folders: Folders) -> None:
        self._workshop = workshop
        self._folders = folders

    async def make(
        self, job: Job, output: str, original: Opened, recipes: tuple[Recipe, ...]
    ) -> Renditions:
        """Make renditions of one cut-out.

        Safe to call again after a kill: a rendition that lies there already counts as made.

        Args:
            job: Whose cut-out it is.
            output: Where it lies in the outbox.
            original: Opens the original; raises `Withdrawn` or `FileFault` when it is not there.
            recipes: What is wanted.

        Raises:
            LocalFault: This machine cannot do it now.
        """
        drawn: list[_Drawn] = []
        outputs: list[str] = []
        new = 0
        try:
            for number, recipe in enumerate(recipes):
                owner = f"{job.id}-{number}"
                drawn.append(await self._draw(job, output, original, recipe, owner))
            for one in drawn:
                name, fresh = await asyncio.to_thread(self._publish, one)
                outputs.append(name)
                new += fresh
            notes = tuple(one.done.note for one in drawn if one.done.note)
        except (NotDecoded, FileFault, Withdrawn, OSError) as fault:
            notes = (f"no renditions: {fault}",)
        except LocalFault as fault:
            if not await asyncio.to_thread(self._is_of_the_name, fault, output):
                raise
            notes = (f"no{' more' * bool(outputs)} renditions, for a name cannot be had: {fault}",)
        finally:
            for one in drawn:
                await asyncio.to_thread(one.temp.remove)
        return Renditions(tuple(outputs), notes, new)

    def _is_of_the_name(self, fault: LocalFault, output: str) -> bool:
        """Tell whether only the name is to blame: another one could be written.

        Such a name must not hold up the line; whoever may drop images may have thought of it.
        """
        cause = fault.__cause__
        if not isinstance(cause, OSError):
            return isinstance(cause, Blocked)
        # Shares say of a name that they refuse, as of one that is lost, that it is not there.
        of_share = cause.errno == errno.ENOENT and self._folders.taken(output)
        return of_share or cause.errno in _REFUSED

    def discard(self, job: Job, output: str, recipes: tuple[Recipe, ...]) -> None:
        """Remove what an earlier run may have left half-drawn."""
        for number, recipe in enumerate(recipes):
            self._folders.discard_temp(target_of(recipe, output), f"{job.id}-{number}")

    async def _draw(
        self, job: Job, output: str, original: Opened, recipe: Recipe, owner: str
    ) -> _Drawn:
        target = target_of(recipe, output)
        with ExitStack() as stack:
            sources = await asyncio.to_thread(self._sources, stack, job, output, original, recipe)
            temp = await asyncio.to_thread(self._folders.temp, target, owner)
            try:
                done = await self._workshop.render(recipe, sources, temp.file)
                await asyncio.to_thread(temp.keep)
            except BaseException:
                await asyncio.to_thread(temp.remove)
                raise
        return _Drawn(temp, owner, target, done)

    def _sources(
        self, stack: ExitStack, job: Job, output: str, original: Opened, recipe: Recipe
    ) -> Sources:
        master = self._folders.cut_out(output)
        if master is None:
            raise FileNotFoundError(f"{output} is no longer in the outbox")
        stack.enter_context(master)
        shown = file = None
        if recipe.show == "original":
            file = stack.enter_context(original())
        elif recipe.iptc:
            with contextlib.suppress(Withdrawn, FileFault):  # only its metadata would be kept
                file = stack.enter_context(original())
        if isinstance(recipe.background, str):
            shown = stack.enter_context(open(recipe.background, "rb"))  # noqa: SIM115 - the stack
        form = job.picture.format if job.picture else ""
        return Sources(master, file, form, shown, area(shown)[0] if shown else "")

    def _publish(self, drawn: _Drawn) -> tuple[str, bool]:
        """Return where a rendition lies, and whether it did not lie there already."""
        for name in candidates(drawn.target, self._folders.longest_name()):
            taken = True
            with contextlib.suppress(NameTaken):
                if self._folders.publish(drawn.owner, name):
                    return name, True
                taken = False
            if self._folders.verify_published(name, drawn.done.sha256, drawn.done.size):
                return name, False
            if not taken:
                raise DiskFailed(f"{printable(name)} was drawn and lost before it was published")
        raise AssertionError("there is always another name")
