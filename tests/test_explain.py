"""`explain` says of any file what the daemon would do with it, and why."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgremover.cli import Exit
from bgremover.commands.explain import explain
from bgremover.core.job import Deferred, Quarantined, Queued, Receipt
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.site import KEY, Site, photo, until
from tests.test_commands import NOON, a_job, write_ledger


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY, latency_seconds=0.05)) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, "http://127.0.0.1:9", watch={"marker": ".here", "ignore": ["*.psd"]})


def explained(site: Site, path: str) -> str:
    with contextlib.chdir(site.root), io.StringIO() as told, contextlib.redirect_stdout(told):
        assert explain(str(site.config), Path(path)) == Exit.DONE
        return " ".join(told.getvalue().split())


def here(site: Site) -> None:
    (site.inbox / ".here").touch()


def plain(site: Site) -> None:
    site.drop("a.jpg", photo(1))
    os.utime(site.inbox / "a.jpg")


def link(site: Site) -> None:
    site.drop("real.jpg", photo(1))
    (site.inbox / "a.jpg").symlink_to("real.jpg")


def fifo(site: Site) -> None:
    os.mkfifo(site.inbox / "a.jpg")


def folder(site: Site) -> None:
    (site.inbox / "a.jpg").mkdir()


def held(site: Site) -> None:
    site.drop(".bgremover.yaml", b"originals: shred")
    plain(site)


def own_rule(site: Site) -> None:
    site.drop(".bgremover.yaml", b"watch: {ignore: ['a.*']}")
    plain(site)


def kept_here(site: Site) -> None:
    site.drop(".bgremover.yaml", b"originals: keep")
    plain(site)


def cut(site: Site) -> None:
    site.drop("a.jpg", photo(1)[:-300])


def text(site: Site) -> None:
    site.drop("a.jpg", b"I am no picture")


def nothing(_: Site) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (plain, "is taken nothing keeps it from being cut out, for $0.01; then: archive"),
        (kept_here, "for $0.01; then: keep"),
        (link, "is left alone it is a symbolic link"),
        (fifo, "is left alone it is no regular file"),
        (folder, "is a folder"),
        (held, "is held .bgremover.yaml: originals (line 1): shred will not do"),
        (own_rule, "is left alone the name is ignored: a.* of watch.ignore"),
        (cut, "waits the JPEG is cut off"),
        (text, "fails it goes to quarantine as not_an_image"),
        (nothing, "is not known a.jpg is not there, and nothing is recorded of it"),
    ],
)
def test_it_says_what_becomes_of_a_file_and_why(
    site: Site, make: Callable[[Site], None], words: str
) -> None:
    here(site)
    make(site)
    until(lambda: "changed" not in explained(site, "a.jpg"))
    told = explained(site, "a.jpg")
    assert told.startswith("a.jpg ")
    assert words in told
    assert "daemon none runs" in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x/a.jpg.part", "the name is ignored: *.part of the built-in list"),
        ("@eaDir/a.jpg", "the folder @eaDir is ignored: @eaDir of the built-in list"),
        ("x/a.psd", "the name is ignored: *.psd of watch.ignore"),
    ],
)
def test_it_names_the_rule(site: Site, name: str, words: str) -> None:
    here(site)
    site.drop(name, photo(1))
    assert words in explained(site, name)
    assert words in explained(site, str(site.inbox / name))
    assert words in explained(site, f"inbox/{name}")


def test_a_lost_inbox_and_an_open_file_are_told(site: Site) -> None:
    plain(site)
    assert "waits the inbox" in explained(site, "a.jpg")
    assert "has no .here (watch.marker)" in explained(site, "a.jpg")
    here(site)
    with (site.inbox / "a.jpg").open("ab"):
        assert "waits a program has it open for writing" in explained(site, "a.jpg")


def test_what_lies_elsewhere_is_refused(site: Site) -> None:
    here(site)
    plain(site)
    assert site.command("explain", "a.jpg").stdout.startswith("a.jpg\n")
    done = site.command("explain", "/etc/hostname")
    assert done.returncode == 78
    assert "does not lie in the inbox" in done.stderr


def test_it_says_what_a_folder_wants_of_its_cut_outs(site: Site) -> None:
    here(site)
    plain(site)
    site.drop("web/b.jpg", photo(2))
    assert " output " not in explained(site, "a.jpg")
    text = b"output: {resolution: result, renditions: [thumb, 'a size=90']}"
    site.drop("web/.bgremover.yaml", text)
    site.drop("web/red/.bgremover.yaml", b"output: {review: off}")
    told = explained(site, "web/b.jpg")
    assert "output resolution: result; renditions: [thumb, a size=90]" in told
    assert "resolution: result; review: off; renditions: " in explained(site, "web/red/c.jpg")


@pytest.mark.parametrize(
    ("until_", "words"),
    [
        (9e9, "waits claimed, and put off until 2255-03-14T16:00:00Z: server_failed daemon"),
        (NOON, "waits claimed, and was put off until 2026-01-31T12:00:00Z: server_failed; it goes"),
    ],
)
def test_a_moment_that_is_over_is_told_as_such(site: Site, until_: float, words: str) -> None:
    here(site)
    plain(site)
    write_ledger(site, a_job("a.jpg", 1, Deferred(until_, Queued(), "server_failed")))
    assert words in explained(site, "a.jpg")


def test_patience_that_is_over_is_told_as_such(tmp_path: Path) -> None:
    site = Site(tmp_path, "http://127.0.0.1:9", watch={"incomplete_minutes": 0})
    cut(site)
    words = "unchanged for more than 0 minutes: it goes to quarantine as truncated"
    until(lambda: words in explained(site, "a.jpg"))


def test_terms_of_a_folder_are_told_with_what_counts_there(site: Site) -> None:
    here(site)
    site.drop("shoes/.bgremover.yaml", b"watch: {ignore: ['a.*']}")
    told = explained(site, "shoes/b.jpg")
    assert "terms a .bgremover.yaml counts here; originals: archive" in told


def test_what_is_paid_for_and_in_quarantine_costs_nothing(site: Site) -> None:
    here(site)
    plain(site)
    sha256 = hashlib.sha256(photo(1)).hexdigest()
    killed = Quarantined("crash_loop", "{}", receipt=Receipt("g", "https://x", 9e9, None))
    write_ledger(site, a_job("b.jpg", 1, killed, picture=sha256))
    until(lambda: "it costs nothing" in explained(site, "a.jpg"))


def test_it_works_beside_the_daemon_and_knows_what_was_done(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = Site(tmp_path, sandbox.url)
    site.drop("keep/.bgremover.yaml", b"originals: keep")
    with site.running() as daemon:
        site.drop("a.jpg", photo(1))
        site.drop("bad.jpg", b"I am no picture")
        site.drop("keep/k.jpg", photo(2))
        daemon.until_event("image.saved", 2)
        daemon.until_event("image.quarantined")
        until(lambda: site.files(site.inbox) == {"keep/.bgremover.yaml", "keep/k.jpg"})
        assert "is done it is not in the inbox any more; it was cut out as a.png" in explained(
            site, "a.jpg"
        )
        place = site.quarantine / "bad.jpg"
        told = f"has failed it lies in quarantine (not_an_image): {place} "
        assert told in explained(site, "bad.jpg")
        place.unlink()
        told = "has failed with not_an_image; it is neither in the inbox nor in quarantine any more"
        assert told in explained(site, "bad.jpg")
        kept = explained(site, "keep/k.jpg")
        assert "is done this very file was cut out before, as keep/k.png, and stays" in kept
        assert "daemon runs; waiting: 0 files" in kept
        site.drop("b.jpg", photo(1))
        daemon.until_event("image.reused")
        assert daemon.end() == 0
        assert len(daemon.events("image.claimed")) == 4
    assert (site.inbox / "keep/k.jpg").exists()
    site.drop("c.jpg", photo(1))
    until(lambda: "it costs nothing" in explained(site, "c.jpg"))
