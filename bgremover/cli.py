"""The commands: arguments in, exit code out.

Everything a command needs is imported when it runs, so that `--version`, `--help` and `health`
answer at once.
"""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import click

from bgremover import __version__
from bgremover.container import enter
from bgremover.core.errors import AlreadyRunning, BgremoverError, SetupError


class Exit(IntEnum):
    """The exit codes (sysexits.h where it has one)."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69
    ALREADY_RUNNING = 75
    SETUP = 78
    INTERRUPTED = 130


_CONFIG = click.option(
    "-c",
    "--config",
    metavar="CONFIG",
    help="The configuration file. Without it: $BGREMOVER_CONFIG, ./config.yaml, "
    "$XDG_CONFIG_HOME/bgremover/config.yaml, /etc/bgremover/config.yaml, or defaults.",
)


@contextmanager
def _loading() -> Iterator[None]:
    """Look for no garbage while modules load: they stay, and looking takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bgremover")
@click.pass_context
def commands(context: click.Context) -> None:
    """Watch a folder; bring every image dropped there back without its background.

    Images dropped into the inbox are sent to Ideogram's Remove Background API and come back as
    transparent PNGs in the outbox. What cannot be cut out goes to quarantine with an error JSON.

    Start with `bgremover demo`, which needs neither a key nor the network.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


@commands.command()
@_CONFIG
def run(config: str | None) -> None:
    """Watch the inbox until SIGTERM or SIGINT."""
    with _loading():
        from bgremover.commands import work

    sys.exit(work.run(config))


@commands.command()
@click.argument("source", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--out",
    metavar="DEST",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the cut-outs of SOURCE go.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a run of more than 50 images.")
@_CONFIG
def once(source: tuple[Path, ...], out: Path | None, yes: bool, config: str | None) -> None:
    """Work through what is in the inbox now, then exit.

    With SOURCE (files or folders) and -o DEST: the same for these, and the originals are left
    untouched.

    Exit code 1 when some images were quarantined or left, 69 when the account or the service
    does not let work go on.
    """
    with _loading():
        from bgremover.commands import work

    if bool(source) != bool(out):
        raise click.UsageError("SOURCE and -o DEST go together: bgremover once photos -o cut-outs")
    if out is None:
        sys.exit(work.once(config, ask=not yes))
    sys.exit(work.once_from(config, source, out, ask=not yes))


@commands.command()
@click.argument("source", nargs=-1, type=click.Path(exists=True, path_type=Path))
@_CONFIG
def plan(source: tuple[Path, ...], config: str | None) -> None:
    """Tell what `once` would do and what it would cost.

    Every image is read and checked; nothing is sent and nothing is written. SOURCE are files or
    folders, as for `once SOURCE -o DEST`; without it the inbox is meant.
    """
    from bgremover.commands import plan as planning

    sys.exit(planning.plan(config, source))


@commands.command(short_help="Find every mistake in configuration and set-up, with its remedy.")
@click.option("--online", is_flag=True, help="Also prove the key to the API, without paying.")
@_CONFIG
def check(online: bool, config: str | None) -> None:
    """Find every mistake in the configuration and the set-up, each with its remedy.

    Exit code 78 when something is wrong, 69 when all is right but the API cannot be reached.
    """
    from bgremover.commands import care

    sys.exit(care.check(config, online=online))


@commands.command(short_help="Show state, queue, spend and the latest failures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@_CONFIG
def status(as_json: bool, config: str | None) -> None:
    """Show state, queue, spend and the latest failures; also beside a running daemon.

    Exit code 1 when a daemon runs but does not answer.
    """
    from bgremover.commands import looking

    sys.exit(looking.status(config, as_json=as_json))


@commands.command(short_help="Tell why a file of the inbox is taken or not.")
@click.argument("path", type=click.Path(path_type=Path))
@_CONFIG
def explain(path: Path, config: str | None) -> None:
    """Tell why a file of the inbox is taken or not, and what it waits for.

    PATH is a file, or its path below the inbox. It need not be there any more. Nothing is sent and
    nothing is changed; works beside a running daemon.
    """
    from bgremover.commands import explain as explaining

    sys.exit(explaining.explain(config, path))


@commands.command()
@_CONFIG
def rebuild(config: str | None) -> None:
    """Make a new ledger in place of a damaged one.

    A copy of the damaged file is kept. What can still be read of it is kept, and
    finished originals, in the archive or kept in the inbox, are paired with their cut-outs, so
    that they are not paid for again; what cannot be paired is named. A ledger that is well is
    left alone.
    """
    from bgremover.commands import rebuild as rebuilding

    sys.exit(rebuilding.rebuild(config))


@commands.command()
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@_CONFIG
def backup(destination: Path, config: str | None) -> None:
    """Copy the ledger to DEST, also while the daemon runs.

    DEST is a new file, or a folder. The copy holds what was done and paid for, and the links to
    results of the last day: keep it as safe as the state folder.
    """
    from bgremover.commands import backup as copying

    sys.exit(copying.backup(config, destination))


@commands.command(short_help="List every charge: when, for which file, what it cost.")
@click.option("--month", metavar="YYYY-MM", help="Only this local month.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV on stdout.")
@_CONFIG
def report(month: str | None, as_csv: bool, config: str | None) -> None:
    """List every charge: when, for which file, with which request id, what it cost.

    Calls whose charge is unknown are listed too; calls that were not billed are not.
    """
    from bgremover.commands import report as reporting

    sys.exit(reporting.report(config, month=month, as_csv=as_csv))


@commands.command()
@click.argument("name", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Everything in quarantine.")
@click.option("--code", metavar="CODE", help="Everything quarantined under this code.")
@_CONFIG
def retry(name: tuple[str, ...], everything: bool, code: str | None, config: str | None) -> None:
    """Move images from quarantine back into the inbox.

    NAME is a path inside the quarantine folder, or a glob: 'shoes/*.jpg'. With --code, only what
    was quarantined under that code. Nothing in the inbox is overwritten; each error JSON is
    removed once its image is back.

    Exit code 1 when nothing matches, or an image cannot be moved.
    """
    from bgremover.commands import care

    if not (name or everything or code):
        raise click.UsageError("say what to retry: NAME, --code CODE or --all")
    sys.exit(care.retry(config, name, everything=everything, code=code))


@commands.command()
@click.argument("name", metavar="[GLOB]...", nargs=-1)
@click.option("--missing", is_flag=True, help="Only those whose names are still free.")
@_CONFIG
def render(name: tuple[str, ...], missing: bool, config: str | None) -> None:
    """Make renditions of the cut-outs that are there, at no cost.

    GLOB is the path of a cut-out in the outbox: 'shoes/*.png'; without it, all. What is made is
    told by output.renditions. Nothing is overwritten: what lies there already and is the same
    stays, something else keeps its name.

    Exit code 1 when nothing matches, or something cannot be made.
    """
    from bgremover.commands import render as rendering

    sys.exit(rendering.render(config, name, missing=missing))


@commands.command()
@click.argument("folder", default=".", metavar="[DIR]", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write config.yaml and the folders into DIR (default: here)."""
    from bgremover.commands import care

    sys.exit(care.init(folder))


@commands.command(short_help="Run the whole pipeline on sample pictures: no key, no cost.")
@click.argument(
    "folder", default="bgremover-demo", metavar="[DIR]", type=click.Path(path_type=Path)
)
def demo(folder: Path) -> None:
    """Run the whole pipeline on sample pictures: no key, no network, no cost."""
    from bgremover.commands import demo as showing

    sys.exit(showing.demo(folder))


@commands.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8765, show_default=True, help="Port; 0 takes a free one.")
@click.option("--latency", default=0.5, show_default=True, help="Seconds that a cut-out takes.")
@click.option("--key", default=None, help="The one key that is accepted. Default: any.")
@click.option("--max-inflight", default=10, show_default=True, help="More are answered with 429.")
@click.option("--link-seconds", default=86400.0, show_default=True, help="How long links live.")
@click.option("--fast", is_flag=True, help="The same small result for every image.")
def sandbox(
    host: str,
    port: int,
    latency: float,
    key: str | None,
    max_inflight: int,
    link_seconds: float,
    fast: bool,
) -> None:
    """Run the built-in stand-in for the API on loopback."""
    from bgremover.sandbox.app import SandboxOptions
    from bgremover.sandbox.server import serve

    serve(
        SandboxOptions(
            host=host,
            port=port,
            latency_seconds=latency,
            key=key,
            max_inflight=max_inflight,
            link_seconds=link_seconds,
            fixed_result=fast,
        )
    )


@commands.command()
@click.option("--strict", is_flag=True, help="A pause counts as ill.")
@_CONFIG
def health(config: str | None, strict: bool) -> None:
    """Exit 0 when the daemon is alive and its loop turns, 1 when not.

    A daemon that pauses is alive: it waits for the account, the service or the disk, and a
    restart would not help.
    """
    from bgremover.commands import looking

    sys.exit(looking.health(config, strict=strict))


@commands.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    from bgremover.commands import care

    sys.exit(care.schema())


def main() -> None:
    """Run the command line; expected faults become one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # The name of a file must not end the program because the terminal cannot show it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    guarded(_as_wanted)


def _as_wanted() -> None:
    enter(os.environ)  # before anything is made that would be root's
    commands()


def guarded(command: Callable[[], object]) -> None:
    """Run `command`; turn what it raises into a message on stderr and the exit code."""
    try:
        command()
    except AlreadyRunning as fault:
        _end(fault, Exit.ALREADY_RUNNING)
    except SetupError as fault:
        _end(fault, Exit.SETUP)
    except BgremoverError as fault:
        _end(fault, Exit.UNAVAILABLE)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _end(fault: BgremoverError, code: Exit) -> None:
    hint = f"\n{fault.hint}" if fault.hint else ""
    click.echo(f"bgremover: {fault.message}{hint}", err=True)
    sys.exit(code)
