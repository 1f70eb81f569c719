"""Folders of the inbox with an `output` of their own, through the real program."""

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops, ImageDraw

from bgremover.core.errors import Billed
from bgremover.core.job import Fetched, Identity, Queued, State
from bgremover.core.terms import OutputTerms
from bgremover.edges.ledger import Ledger
from bgremover.pipeline import NOTHING_PAID
from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.fakes import NOON, a_job, an_attempt
from tests.site import KEY, Site, photo, until

SIZE = (600, 450)
ARTIST, GPS = 0x013B, 0x8825


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with RunningSandbox(SandboxOptions(key=KEY)) as running:
        yield running


def site_of(tmp_path: Path, sandbox: RunningSandbox, **settings: Any) -> Site:  # noqa: ANN401 - YAML
    """A site whose uploads are smaller than their originals, and so are the results."""
    output = {"resolution": "original", "review": "warn", **settings.pop("output", {})}
    return Site(tmp_path, sandbox.url, output=output, api={"max_upload_mb": 0.025}, **settings)


GRAIN = Image.effect_noise((200, 200), 90).convert("RGB")  # no file of it is small


def scene(number: int = 0, kind: str = "BMP", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((150, 50, 450, 400), fill=(180, 60, 40))
    image.paste(GRAIN, (200, 130))
    draw.rectangle((250, 150, 350, 160 + 5 * number), fill=(20, 20, 120))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


TINY = Image.new("RGB", SIZE, "white")
ImageDraw.Draw(TINY).ellipse((295, 220, 305, 230), fill=(180, 60, 40))


def tiny() -> bytes:
    """Draw next to nothing: whoever reviews the result has doubts."""
    buffer = io.BytesIO()
    TINY.save(buffer, "PNG")
    return buffer.getvalue()


def told_where() -> bytes:
    """Draw a picture that says who made it and where."""
    exif = Image.Exif()
    exif[ARTIST] = "Anna"
    exif.get_ifd(GPS)[1] = "N"
    return scene(7, "JPEG", quality=85, exif=exif)


def saved(site: Site, name: str) -> Image.Image:
    image = Image.open(site.outbox / name)
    image.load()
    return image


def size(site: Site, name: str) -> tuple[int, int]:
    return saved(site, name).size


def own(site: Site, folder: str, text: str) -> None:
    site.drop(f"{folder}/.bgremover.yaml", text.encode())


def test_each_folder_gets_what_it_asks_for_and_a_wrong_one_holds_itself_alone(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"renditions": ["mask"]})
    own(site, "web", "output: {resolution: result, renditions: [thumb, 'small longest=200']}")
    own(site, "web/plain", "output: {renditions: []}")
    own(site, "checked", "output: {review: move}")
    own(site, "bad", "output: {renditions: ['a background=/etc/hostname']}")
    names = ("a.bmp", "web/a.bmp", "web/plain/a.bmp", "checked/a.bmp", "bad/a.bmp")
    for number, name in enumerate(names):
        site.drop(name, scene(number))
    site.drop("tiny.png", tiny())
    site.drop("checked/tiny.png", tiny())
    done = site.command("once")
    assert done.returncode == 1, done.stderr
    assert "0 failed, 1 left." in done.stdout
    assert "held    1 file, until the .bgremover.yaml that the log names is mended" in done.stdout
    assert "bad/.bgremover.yaml" in done.stderr
    assert "a folder cannot name an image as its background" in done.stderr
    assert site.files(site.outbox) == {
        *("a.png", "a-mask.png", "tiny.png", "tiny-mask.png"),
        *("web/a.png", "web/a-thumb.webp", "web/a-small.png", "web/plain/a.png"),
        *("checked/a.png", "checked/a-mask.png"),
        *("_review/checked/tiny.png", "_review/checked/tiny-mask.png"),
        "_review/checked/tiny.png.review.json",
    }
    assert size(site, "a.png") == size(site, "checked/a.png") == SIZE
    assert max(size(site, "web/a.png")) < max(SIZE)
    assert max(size(site, "web/plain/a.png")) < max(SIZE)
    assert max(size(site, "web/a-small.png")) == 200
    assert site.files(site.inbox) == {
        *(f"{folder}/.bgremover.yaml" for folder in ("web", "web/plain", "checked", "bad")),
        "bad/a.bmp",
    }
    own(site, "bad", "output: {resolution: result}")
    assert site.command("once").returncode == 0
    assert max(size(site, "bad/a.png")) < max(SIZE)
    assert len(sandbox.state.payments) == 6  # both tiny ones are one


def test_metadata_are_kept_as_the_folder_says(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "keep", "output: {metadata: keep}")
    own(site, "strip", "output: {metadata: strip}")
    site.drop("keep/a.jpg", told_where())
    assert site.command("once").returncode == 0
    # The same bytes again: served, but not with what the other folder keeps.
    for name in ("strip/a.jpg", "a.jpg", "keep/again.jpg"):
        site.drop(name, told_where())
    assert site.command("once").returncode == 0
    tags = {name: saved(site, name).getexif() for name in site.files(site.outbox)}
    assert {name for name, exif in tags.items() if ARTIST in exif} == {
        *("keep/a.png", "keep/again.png", "a.png")
    }
    assert {name for name, exif in tags.items() if GPS in exif} == {"keep/a.png", "keep/again.png"}
    first = saved(site, "keep/a.png")
    for name in ("strip/a.png", "a.png"):
        assert ImageChops.difference(first, saved(site, name)).getbbox(alpha_only=False) is None
    assert (site.outbox / "keep/again.png").read_bytes() == (
        site.outbox / "keep/a.png"
    ).read_bytes()
    assert len(sandbox.state.payments) == 1


@pytest.mark.parametrize("first", ["result", "original"])
def test_the_same_bytes_are_served_in_the_size_that_the_folder_wants(
    tmp_path: Path, sandbox: RunningSandbox, first: str
) -> None:
    site = site_of(tmp_path, sandbox)
    second = {"result": "original", "original": "result"}[first]
    own(site, "first", f"output: {{resolution: {first}, renditions: [mask]}}")
    own(site, "second", f"output: {{resolution: {second}, renditions: ['s longest=90']}}")
    site.drop("first/a.bmp", scene())
    assert site.command("once").returncode == 0
    site.drop("second/b.bmp", scene())
    done = site.command("once")
    assert done.returncode == 0
    assert site.files(site.outbox) == {
        *("first/a.png", "first/a-mask.png", "second/b.png", "second/b-s.png")
    }
    (line,) = [json.loads(line) for line in done.stderr.splitlines() if '"image.saved"' in line]
    # What came back is not there any more: nothing is paid for it again, but it is told.
    assert size(site, "second/b.png") == SIZE
    assert line["usd"] == 0
    assert ("made of a cut-out" in str(line.get("notes"))) is (second == "result")
    assert len(sandbox.state.payments) == 1
    assert list(site.outbox.rglob(".*")) == []


def test_what_was_never_reviewed_is_reviewed_where_the_folder_wants_it(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"review": "off"})
    own(site, "checked", "output: {review: move}")
    own(site, "trusted", "output: {review: off}")
    own(site, "told", "output: {review: warn}")
    for name in ("a.png", "told/a.png", "checked/a.png", "checked/b.png", "trusted/a.png"):
        site.drop(name, tiny())
        done = site.command("once")
        assert done.returncode == 0
        assert ("doubts" in done.stderr) is name.startswith(("checked/", "told/"))
    assert site.files(site.outbox) == {
        *("a.png", "told/a.png", "trusted/a.png"),
        *("_review/checked/a.png", "_review/checked/a.png.review.json"),
        *("_review/checked/b.png", "_review/checked/b.png.review.json"),
    }
    assert len(sandbox.state.payments) == 1


# --- a kill ---------------------------------------------------------------------------------


def script(sandbox: RunningSandbox, *faults: dict[str, Any]) -> None:
    url = f"{sandbox.url}/sandbox/script"
    httpx.post(url, params={"target": "download"}, json=faults).raise_for_status()


@pytest.mark.parametrize("meanwhile", ["output: {resolution: original}", "output: {huge: 1}", None])
def test_what_was_asked_for_when_it_was_paid_is_made_after_a_kill(
    tmp_path: Path, sandbox: RunningSandbox, meanwhile: str | None
) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "web", "output: {resolution: result, renditions: ['small longest=200']}")
    script(sandbox, {"status": 503, "times": "forever"})
    with site.running() as daemon:
        site.drop("web/a.bmp", scene())
        daemon.until_event("image.paid")
        daemon.until_event("image.deferred")
        daemon.end(signal.SIGKILL)
    if meanwhile is None:
        (site.inbox / "web/.bgremover.yaml").unlink()
    else:
        own(site, "web", meanwhile)
    sandbox.state.script.clear()
    with site.running(log="log-2") as daemon:
        daemon.until_event("image.saved")
        assert daemon.end() == 0
    assert site.files(site.outbox) == {"web/a.png", "web/a-small.png"}
    assert max(size(site, "web/a.png")) < max(SIZE)
    assert len(sandbox.state.payments) == 1


def test_what_was_not_paid_yet_gets_what_its_folder_says_then(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, budget={"per_day_usd": 0})
    own(site, "web", "output: {resolution: result}")
    with site.running() as daemon:
        site.drop("web/a.bmp", scene())
        daemon.until_event("budget.reached")
        own(site, "web", "output: {renditions: [mask]}")
        config = site.config.read_text()
        site.config.write_text(config.replace("per_day_usd: 0", "per_day_usd: 1"))
        daemon.send(signal.SIGHUP)
        daemon.until_event("image.saved")
        assert daemon.end() == 0
    assert size(site, "web/a.png") == SIZE
    assert site.files(site.outbox) == {"web/a.png", "web/a-mask.png"}


def test_a_folder_that_turns_wrong_is_not_paid_for_until_it_is_mended(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, budget={"per_day_usd": 0})
    own(site, "web", "output: {resolution: result}")
    with site.running() as daemon:
        site.drop("web/a.bmp", scene())
        site.drop("b.jpg", photo(1))
        daemon.until_event("budget.reached")
        until(lambda: len(daemon.events("image.deferred")) >= 1)
        own(site, "web", "output: {resolution: huge}")
        config = site.config.read_text()
        site.config.write_text(config.replace("per_day_usd: 0", "per_day_usd: 1"))
        daemon.send(signal.SIGHUP)
        daemon.until_event("image.saved")
        until(lambda: daemon.events("image.ignored"))
        assert [payment.file for payment in sandbox.state.payments] == ["b.jpg"]
        own(site, "web", "output: {resolution: original}")
        daemon.until_event("image.saved", 2)
        assert daemon.end() == 0
    assert size(site, "web/a.png") == SIZE


def record(site: Site, path: str, state: State, **changes: Any) -> None:  # noqa: ANN401 - of Job
    """Write a job into the ledger as a killed daemon would have left it."""
    identity = Identity.of((site.inbox / path).stat())
    job = a_job(id="killed", path=path, identity=identity, state=state, **changes)
    with closing(Ledger(site.state)) as ledger, ledger.transaction():
        ledger.put(job, NOON)


def test_a_copy_that_was_lost_before_it_was_published_is_not_paid_for(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "small", "output: {resolution: result}")
    site.drop("a.bmp", scene())
    assert site.command("once").returncode == 0
    with closing(Ledger(site.state)) as ledger:
        (first,) = ledger.saved()
    assert first.terms == OutputTerms()
    site.drop("small/b.bmp", scene())
    lost = Fetched(NOTHING_PAID, "small/b.png", "5ec4e7", 9)
    record(site, "small/b.bmp", lost, picture=first.picture, terms=OutputTerms("result"))
    assert site.command("once").returncode == 0
    assert size(site, "small/b.png") == SIZE
    assert len(sandbox.state.payments) == 1


def test_nothing_is_left_of_a_copy_that_the_program_died_over(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    site.drop("a.bmp", scene())
    assert site.command("once").returncode == 0
    site.drop("b.bmp", scene())
    record(site, "b.bmp", Queued(), crashes=3)
    (site.outbox / ".bgremover-killed").write_bytes(b"half a cut-out")
    assert site.command("once").returncode == 1
    assert site.files(site.outbox) == {"a.png"}
    assert site.files(site.quarantine) == {"b.bmp", "b.bmp.error.json"}


def test_an_image_that_may_have_been_paid_for_is_not_forgotten_where_its_folder_turns_wrong(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, retry={"unknown_charge": "hold"})
    site.drop("web/a.bmp", scene())
    site.drop("web/b.bmp", scene(1))
    own(site, "web", "output: {resolution: huge}")
    site.state.mkdir()
    asked = an_attempt(billed=Billed.UNKNOWN)
    record(site, "web/a.bmp", Queued(), attempts=(asked,), terms=OutputTerms())
    assert site.command("once").returncode == 1
    report = json.loads((site.quarantine / "web/a.bmp.error.json").read_text())
    assert report["code"] == "unknown_charge"
    assert "web/b.bmp" in site.files(site.inbox)
    assert sandbox.state.payments == []


def test_a_cut_out_that_is_there_for_the_very_file_stays_as_it_is(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "web", "output: {metadata: keep}")
    site.drop("web/a.jpg", told_where())
    assert site.command("once").returncode == 0
    before = (site.outbox / "web/a.png").read_bytes()
    own(site, "web", "output: {metadata: strip, renditions: [mask]}")
    site.drop("web/a.jpg", told_where())
    done = site.command("once")
    assert "image.reused" in done.stderr
    assert (site.outbox / "web/a.png").read_bytes() == before
    assert site.files(site.outbox) == {"web/a.png", "web/a-mask.png"}
    # It is known all the same by what it was made.
    site.drop("web/b.jpg", told_where())
    assert site.command("once").returncode == 0
    assert GPS not in saved(site, "web/b.png").getexif()
    assert len(sandbox.state.payments) == 1


def test_a_cut_out_of_unknown_making_counts_as_what_the_configuration_says(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox, output={"metadata": "keep"})
    site.drop("a.jpg", told_where())
    assert site.command("once").returncode == 0
    with closing(Ledger(site.state)) as ledger:
        (first,) = ledger.saved()
        with ledger.transaction():
            ledger.put(replace(first, terms=None), NOON)
    own(site, "strip", "output: {metadata: strip}")
    for name in ("strip/a.jpg", "b.jpg"):
        site.drop(name, told_where())
    done = site.command("once")
    assert (done.stderr.count('"image.reused"'), done.stderr.count('"image.saved"')) == (1, 1)
    assert GPS not in saved(site, "strip/a.png").getexif()
    assert GPS in saved(site, "b.png").getexif()
    assert len(sandbox.state.payments) == 1


@pytest.mark.parametrize("terms", ["{metadata: safe}", "{metadata: strip}"])
def test_a_cut_out_that_was_written_over_serves_nobody(
    tmp_path: Path, sandbox: RunningSandbox, terms: str
) -> None:
    site = site_of(tmp_path, sandbox)
    for name in ("a.bmp", "b.bmp"):
        site.drop(name, scene())
        assert site.command("once").returncode == 0
    whole = saved(site, "a.png")
    # The newest one is tried first. Of the same size: only its bytes tell.
    content = (site.outbox / "b.png").read_bytes()
    (site.outbox / "b.png").write_bytes(content[::-1])
    own(site, "web", f"output: {terms}")
    site.drop("web/c.bmp", scene())
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    assert site.files(site.outbox) == {"a.png", "b.png", "web/c.png"}
    assert ImageChops.difference(saved(site, "web/c.png"), whole).getbbox(alpha_only=False) is None
    assert len(sandbox.state.payments) == 1


# --- names that would hold up everybody -----------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        "mask name={stem}.png/{stem}.png",  # a folder where the cut-out lies
        f"mask name={'x' * 300}/{{stem}}.png",
        "mask name=" + "{stem}" * 120 + "/{stem}.png",
        "wide trim=true margin=45%",
        "wide trim=true fill=1%",
    ],
    ids=["file", "long", "longer", "margin", "fill"],
)
def test_a_rendition_that_cannot_be_stops_nothing(
    tmp_path: Path, sandbox: RunningSandbox, recipe: str
) -> None:
    site = site_of(tmp_path, sandbox, input={"max_megapixels": 5})
    own(site, "web", f"output: {{renditions: ['{recipe}']}}")
    site.drop("web/abc.bmp", scene())
    site.drop("z.jpg", photo(1))
    done = site.command("once")
    assert done.returncode == 0, done.stderr
    assert "service.paused" not in done.stderr
    assert "no renditions" in done.stderr
    assert site.files(site.outbox) == {"web/abc.png", "z.png"}
    assert {"web/abc.bmp", "z.jpg"} <= site.files(site.archive)
    assert [name for _, _, names in os.walk(site.outbox) for name in names if name[0] == "."] == []


# --- render ---------------------------------------------------------------------------------


def test_render_shows_the_very_original_or_none(tmp_path: Path, sandbox: RunningSandbox) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "keep", "originals: keep")
    shown = Image.open(io.BytesIO(scene(0))), Image.open(io.BytesIO(scene(9)))
    site.drop("a.bmp", scene(0))
    assert site.command("once").returncode == 0
    for number, name in ((9, "a.bmp"), (0, "keep/a.bmp"), (9, "keep/b.bmp")):
        site.drop(name, scene(number))
    assert site.command("once").returncode == 0
    own(site, ".", "output: {renditions: ['crop format=png quality=90 trim=false']}")
    # Of the same size, under the same name: another picture, and one that is not to be read.
    site.drop("keep/a.bmp", scene(9))
    (site.root / "elsewhere.bmp").write_bytes(scene(9))
    (site.inbox / "keep/b.bmp").unlink()
    (site.inbox / "keep/b.bmp").symlink_to(site.root / "elsewhere.bmp")
    done = site.command("render")
    assert done.returncode == 1
    assert done.stdout == "2 renditions made of 4 cut-outs. Nothing was sent.\n"
    for name in ("keep/a.bmp", "keep/b.bmp"):
        assert f"no renditions: the original {name} is gone, is another file now" in done.stderr
    for name, picture in zip(("a-crop.png", "a-2-crop.png"), shown, strict=True):
        assert ImageChops.difference(saved(site, name), picture).getbbox() is None


def test_render_makes_what_each_folder_asks_for_now(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    own(site, "keep", "originals: keep")
    for number, name in enumerate(("a.bmp", "keep/a.bmp", "web/x/a.bmp", "bad/a.bmp")):
        site.drop(name, scene(number))
    assert site.command("once").returncode == 0
    made = site.files(site.outbox)
    nothing = site.command("render")
    assert nothing.returncode == 78
    assert "or in the .bgremover.yaml of a folder" in nothing.stderr
    own(site, "keep", "originals: keep\noutput: {renditions: [crop]}")
    own(site, "web", "output: {renditions: [mask, 's longest=90']}")
    own(site, "bad", "output: {renditions: [masks]}")
    (site.inbox / "web/x").rmdir()
    done = site.command("render", "--missing")
    assert done.returncode == 1
    assert "bad/a.png: bad/.bgremover.yaml: output.renditions (line 1): " in done.stderr
    assert done.stdout == "3 renditions made of 4 cut-outs. Nothing was sent.\n"
    rendered = {"keep/a-crop.jpg", "web/x/a-mask.png", "web/x/a-s.png"}
    assert site.files(site.outbox) == made | rendered
    assert "1 cut-out, 2 there already" in site.command("render", "web/*").stdout
    assert len(sandbox.state.payments) == 4


def test_what_met_a_free_failure_waits_too_while_its_folder_is_wrong(
    tmp_path: Path, sandbox: RunningSandbox
) -> None:
    site = site_of(tmp_path, sandbox)
    busy = [{"status": 503, "headers": {"Retry-After": "3"}}]
    httpx.post(f"{sandbox.url}/sandbox/script", params={"target": "post"}, json=busy)
    with site.running() as daemon:
        daemon.until_event("daemon.ready")
        site.drop("web/a.jpg", scene(1, "JPEG"))
        daemon.until_event("image.deferred")
        own(site, "web", "output: {resolution: huge}")
        nothing = {"waiting": 0, "in_flight": 0, "deferred": 0, "held": 1}
        until(lambda: json.loads(site.command("status", "--json").stdout)["queue"] == nothing)
        assert sandbox.state.payments == []
        own(site, "web", "output: {resolution: result}")
        daemon.until_event("image.saved")
        assert daemon.end() == 0
    assert len(sandbox.state.payments) == 1
