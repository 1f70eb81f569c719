"""`demo`: the whole pipeline on sample pictures, against the built-in stand-in for the API."""

from pathlib import Path

import click
import yaml

from bgremover.cli import Exit
from bgremover.commands.common import pass_the_door
from bgremover.commands.work import run_daemon
from bgremover.core.errors import SetupError
from bgremover.core.job import Job, Quarantined, Saved
from bgremover.core.naming import printable
from bgremover.edges.logs import configure
from bgremover.edges.supervisor import StateLock
from bgremover.key import find_key_source
from bgremover.reading import parse_settings
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.samples import write_broken, write_samples
from bgremover.sandbox.server import RunningSandbox
from bgremover.settings import Settings
from bgremover.wiring import Work

LATENCY_SECONDS = 0.5
LOG = "demo.log"


def demo(folder: Path) -> int:
    """Draw the samples, cut them out, tell what went where; return the exit code."""
    folder = folder.resolve()
    inbox = folder / "inbox"
    try:
        write_samples(inbox)
        write_broken(inbox)
    except OSError as error:
        raise SetupError(
            f"the samples cannot be drawn into {printable(str(inbox))}: {error.strerror}. Name a "
            "folder that you may write to: bgremover demo DIR"
        ) from error
    click.echo(
        "Three sample pictures and a broken one lie in the inbox. A stand-in for the API runs on\n"
        "this machine: no key, no network, no cost. It cuts plain backgrounds out by colour and\n"
        "is no replacement for the service.\n"
    )
    options = SandboxOptions(latency_seconds=LATENCY_SECONDS)
    with RunningSandbox(options) as sandbox, (folder / LOG).open("a") as log:
        configure("json", "info", None, stream=log)
        settings = _settings(sandbox.url, folder)
        pass_the_door(settings)
        key = find_key_source(settings, {"IDEOGRAM_API_KEY": "demo"})
        work = Work(inbox, settings.originals, watch=False)
        with StateLock(Path(settings.folders.state)):
            run_daemon(settings, work, key, lambda job: click.echo(_line(job)))
        calls = len(sandbox.state.payments)
    click.echo(
        f"\n{calls} calls; at the service they would have cost ${calls * 0.01:.2f}. A second run "
        "costs nothing:\nthe same pictures are served from the cut-outs that are there.\n\n"
        f"Look at  {folder}/outbox       the cut-outs\n"
        f"         {folder}/quarantine   what failed, and why\n"
        f"         {folder}/archive      the originals\n"
        f"         {folder}/{LOG}     the same as log lines\n\n"
        "With your own key: bgremover init, then bgremover check, then bgremover run."
    )
    return Exit.DONE


def _settings(url: str, folder: Path) -> Settings:
    text = {
        "api": {"base_url": url},
        # The samples are not being copied by anybody: a short wait is enough.
        "watch": {"settle_seconds": 0.2, "incomplete_minutes": 0},
    }
    return parse_settings(yaml.safe_dump(text), {}, folder)


def _line(job: Job) -> str:
    name = printable(job.path)
    match job.state:
        case Saved(output=output, reused=True):
            return f"  {name:<12} -> outbox/{printable(output):<18} served from an earlier cut-out"
        case Saved(output=output, size=size):
            seconds = sum(attempt.seconds for attempt in job.attempts)
            return (
                f"  {name:<12} -> outbox/{printable(output):<18} "
                f"{size / 1000:,.0f} kB, {seconds:.1f} s at the API"
            )
        case Quarantined(code=code, name=kept):
            return f"  {name:<12} -> quarantine/{printable(kept):<14} {code}"
        case _:
            return f"  {name:<12} left alone: {job.state.kind}"
