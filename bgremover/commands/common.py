"""What several commands need: the settings, the door, the state folder's owner."""

import os
import sys
from pathlib import Path

import click

from bgremover.core.errors import SetupError
from bgremover.door import door_check, prepare_folders
from bgremover.edges.logs import configure
from bgremover.findings import Finding
from bgremover.key import KeySource, find_key_source
from bgremover.reading import load_settings
from bgremover.settings import Settings


def settings_from(config: str | None) -> Settings:
    """Load the settings for a command.

    Raises:
        SetupError: With every mistake.
    """
    return load_settings(config, os.environ, Path.cwd())


def start_logging(settings: Settings, *, bar: bool = False) -> None:
    """Send all logs where the settings say; with a progress bar on stderr, little goes there."""
    configure(settings.log.format, settings.log.level, settings.log.file, aside=bar)


def key_from(settings: Settings) -> KeySource:
    """Return where the key is read from; it has been read once and looks like a key.

    Raises:
        SetupError: There is none, or it cannot be one.
    """
    source = find_key_source(settings, os.environ)
    source.read()
    return source


def pass_the_door(settings: Settings) -> None:
    """Refuse a set-up that cannot work, and make the folders.

    Raises:
        SetupError: With every finding and its remedy.
    """
    findings = door_check(settings)
    for finding in findings:
        if finding.level == "warning":
            click.echo(f"bgremover: warning: {line(finding)}", err=True)
    errors = [line(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise SetupError("the set-up is wrong:\n" + "\n".join(f"  {error}" for error in errors))
    prepare_folders(settings)


def line(finding: Finding) -> str:
    """Return a finding as one line: where, what, remedy."""
    return f"{finding.where}: {finding.what}. {finding.remedy}"


def on_terminal() -> bool:
    """Tell whether a person looks at stderr."""
    return sys.stderr.isatty()
