"""SIGHUP: the real daemon reads its settings again, refuses bad ones and pays nothing twice."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgremover.commands.reread import changes
from bgremover.reading import parse_settings
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.5)) as running:
        yield running


def change(site: Site, section: str, **values: Any) -> None:  # noqa: ANN401 - YAML
    config = yaml.safe_load(site.config.read_text())
    config[section] = {**config.get(section, {}), **values}
    site.config.write_text(yaml.safe_dump(config))


def test_new_settings_are_in_force_and_what_was_in_flight_is_brought_home(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url, queue={"workers": 1})
    with site.running() as daemon:
        for number in range(4):
            site.drop(f"{number}.jpg", photo(number))
        daemon.until_event("image.submitted")
        change(site, "queue", workers=4)
        change(site, "folders", outbox=str(tmp_path / "elsewhere"))
        daemon.send(signal.SIGHUP)
        daemon.until_event("daemon.ready", 2)
        (told,) = daemon.events("settings.reread")
        assert told["changed"] == ["folders.outbox", "queue.workers"]
        until(lambda: site.files(site.inbox) == set())
        assert daemon.end() == 0
    first, others = site.files(site.outbox), site.files(tmp_path / "elsewhere")
    assert first
    assert first | others == {f"{number}.png" for number in range(4)}
    assert len(sandbox.state.payments) == 4
    assert daemon.events("image.charge_unknown") == []


def test_a_wrong_configuration_is_refused_and_the_old_one_kept(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    good = site.config.read_text()
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        for count, (section, values, words) in enumerate(
            [
                ("queue", {"workers": "many"}, "queue.workers"),
                ("folders", {"state": str(tmp_path / "other")}, "Restart"),
                ("folders", {"outbox": "/proc/none"}, "folders.outbox"),
                ("api", {"key_file": str(tmp_path / "no-key")}, "key"),
                (
                    "notify",
                    {"webhook_url": "http://127.0.0.1:9", "webhook_secret_file": "no-secret"},
                    "notify.webhook_secret_file",
                ),
                ("log", {"file": str(tmp_path / "no/folder/log")}, "log.file"),
            ],
            1,
        ):
            change(site, section, **values)
            daemon.send(signal.SIGHUP)
            daemon.until_event("settings.refused", count)
            assert words in daemon.events("settings.refused")[-1]["message"]
            site.config.write_text(good)
        site.drop("a.jpg", photo())
        daemon.until_event("image.saved")
        assert len(daemon.events("daemon.ready")) == 1
        assert daemon.end() == 0
    assert site.files(site.outbox) == {"a.png"}


def test_a_reload_without_a_change_disturbs_nothing(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        change(site, "log", level="debug")
        for count in (1, 2):
            daemon.send(signal.SIGHUP)
            daemon.until_event("settings.reread", count)
        assert [line["changed"] for line in daemon.events("settings.reread")] == [["log.level"], []]
        assert len(daemon.events("daemon.ready")) == 1
        assert daemon.end() == 0


def test_an_end_that_comes_while_a_reload_waits_is_obeyed(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    with site.running() as daemon:
        site.drop("a.jpg", photo())
        daemon.until_event("image.submitted")
        change(site, "queue", workers=2)
        daemon.send(signal.SIGHUP)
        daemon.until_event("settings.reread")
        assert daemon.end() == 0
        assert len(daemon.events("daemon.ready")) == 1
    assert len(sandbox.state.payments) == 1


def test_changes_are_named_by_their_keys() -> None:
    old = parse_settings("", {}, Path("/"))
    new = parse_settings("watch: {ignore: ['*.psd']}\noriginals: keep", {}, Path("/"))
    assert changes(old, old) == []
    assert changes(old, new) == ["originals", "watch.ignore"]
