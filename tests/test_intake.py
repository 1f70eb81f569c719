"""What the intake offers and when: a real folder, clocks that the test turns."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from bgremover import intake as room
from bgremover.core.errors import EmptyImage
from bgremover.core.ignoring import Ignore
from bgremover.core.job import Identity, Kept
from bgremover.core.settling import Patience
from bgremover.core.terms import FILE, Override
from bgremover.edges.inbox import Inbox, Sighting
from bgremover.edges.pictures import Limits, inspect, whole
from bgremover.intake import Intake, Rhythm
from bgremover.reading import parse_override
from bgremover.settings import Settings
from bgremover.timing import Clock
from tests.site import photo

PATIENCE = Patience(settle_seconds=2.0, closed_seconds=0.5, incomplete_seconds=600.0)
RHYTHM = Rhythm(sweep_seconds=300.0, poll_seconds=5.0, events=True)
PICTURE = photo(1, size=(400, 300))


@dataclass
class Bench:
    """An intake over a real folder, with clocks that only the test moves.

    Change times of files are real, so `wall` is the real time plus what the test has added.
    """

    folder: Path
    rhythm: Rhythm = RHYTHM
    room: int = 1000
    trust_ctime: bool = False
    leases: bool = True
    passed: float = 0.0
    claimed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock = Clock(wall=self._wall, steady=lambda: self.passed)
        override = partial(parse_override, given=Settings())
        inbox = Inbox(self.folder, Ignore(), leases=self.leases, whole=whole, override=override)
        self.intake = Intake(
            inbox, PATIENCE, clock, self._claim, rhythm=self.rhythm, trust_ctime=self.trust_ctime
        )

    def _wall(self) -> float:
        # Not before the change times of files, which are of the kernel's coarser clock.
        probe = self.folder.parent / "now"
        probe.write_bytes(b"")
        return probe.stat().st_ctime + self.passed

    def _claim(self, sighting: Sighting) -> bool:
        if len(self.claimed) >= self.room:
            return False
        self.claimed.append(sighting.path)
        return True

    def drop(self, name: str, data: bytes = PICTURE) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def turn(self, seconds: float = 0.0) -> list[str]:
        """Let so much time pass, let it do what is due, return what is claimed by now."""
        self.passed += seconds
        asyncio.run(self.intake.turn())
        return sorted(self.claimed)

    def turns(self, seconds: float, step: float = 0.25) -> list[str]:
        """The same in small steps, as it is woken in life."""
        end = self.passed + seconds
        while self.passed < end:
            self.turn(min(step, end - self.passed))
        return sorted(self.claimed)

    def inspected(self) -> str | None:
        """What the pipeline would find of the file that was claimed last, as a code."""
        (path,) = self.claimed
        with (self.folder / path).open("rb") as file:
            try:
                inspect(file, Limits(10_000_000))
            except EmptyImage as fault:
                return fault.code
            except Exception as fault:  # noqa: BLE001 - whatever it says
                return str(getattr(fault, "code", fault))
        return None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(_made(tmp_path))


def _made(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def told() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


# --- whole ----------------------------------------------------------------------------------


def test_a_closed_and_whole_picture_is_taken_early(bench: Bench) -> None:
    bench.drop("a.jpg")
    assert bench.turn() == []
    assert bench.turn(0.4) == []
    assert bench.turn(0.1) == ["a.jpg"]


@pytest.mark.parametrize(
    "data",
    [PICTURE[:-2], PICTURE + bytes(200), b"", b"II*\0"],
    ids=["cut", "zeros", "empty", "raw"],
)
def test_what_does_not_end_as_a_picture_has_to_settle(bench: Bench, data: bytes) -> None:
    bench.drop("a.jpg", data)
    bench.turn()
    assert bench.turns(1.9) == []
    assert bench.turns(0.2) == ["a.jpg"]


def test_where_leases_say_nothing_it_has_to_settle(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), leases=False)
    bench.drop("a.jpg")
    bench.turn()
    assert bench.turns(1.9) == []
    assert bench.turns(0.2) == ["a.jpg"]


def test_what_is_open_for_writing_is_not_taken_though_it_stalls_for_a_minute(bench: Bench) -> None:
    with bench.drop("a.jpg", b"").open("wb") as writer:
        writer.write(PICTURE[:1000])
        writer.flush()
        bench.turn()
        assert bench.turns(8.0) == []
        assert bench.turns(60.0, step=2.0) == []
        writer.write(PICTURE[1000:])
        writer.flush()
        assert bench.turns(60.0, step=2.0) == []
    assert bench.turns(3.0) == ["a.jpg"]


def test_what_another_process_resumes_a_minute_later_is_handed_back_until_it_is_whole(
    bench: Bench,
) -> None:
    path = bench.drop("a.jpg", PICTURE[:1000])
    bench.turn()
    end, handed = bench.passed + 60.0, 0
    while bench.passed < end:
        bench.turns(1.0)
        if bench.claimed:
            assert bench.inspected() == "truncated"
            identity = Inbox(bench.folder, Ignore()).look(["a.jpg"])[0].identity
            assert bench.intake.wait_longer("a.jpg", identity)
            bench.claimed.clear()
            handed += 1
    assert 3 <= handed <= 7  # patience grows
    assert bench.intake.left == ["a.jpg"]
    with path.open("ab") as writer:
        writer.write(PICTURE[1000:])
    assert bench.turns(62.0) == ["a.jpg"]
    assert bench.inspected() is None


@pytest.mark.parametrize(
    ("placeholder", "code"),
    [
        (b"", "empty"),
        (bytes(len(PICTURE)), "truncated"),
        (PICTURE[:40] + bytes(9000), "truncated"),
    ],
    ids=["empty", "all zeros", "filled up with zeros"],
)
def test_a_placeholder_that_is_held_open_is_never_taken(
    bench: Bench, placeholder: bytes, code: str
) -> None:
    path = bench.drop("a.jpg", placeholder)
    with path.open("r+b") as writer:
        bench.turn()
        assert bench.turns(40.0, step=1.0) == []
        writer.write(PICTURE)
        writer.truncate()
    assert bench.turns(3.0) == ["a.jpg"]
    assert bench.inspected() is None
    path.write_bytes(placeholder)
    assert bench.inspected() == code


def test_patience_with_what_stays_cut_off_ends(bench: Bench) -> None:
    bench.drop("a.jpg", PICTURE[:1000])
    bench.turn()
    waited = True
    while waited:
        bench.turns(61.0, step=1.0)
        identity = Inbox(bench.folder, Ignore()).look(["a.jpg"])[0].identity
        assert bench.claimed.pop() == "a.jpg"
        bench.claimed.clear()
        waited = bench.intake.wait_longer("a.jpg", identity)
    assert 600.0 <= bench.passed <= 720.0


# --- nothing missed -------------------------------------------------------------------------


def test_a_file_that_no_event_told_of_is_found_counted_and_let_it_sweep_sooner(
    tmp_path: Path, told: list[Any]
) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=True)
    bench.turn()
    bench.turn(10.0)
    bench.drop("told.jpg")
    bench.intake.hint("told.jpg")
    bench.turns(3.0)
    assert (bench.intake.sweeps, bench.intake.missed) == (1, 0)
    bench.drop("untold.jpg")
    os.utime(bench.folder / "untold.jpg")
    bench.turns(2.0)
    assert bench.claimed == ["told.jpg"]
    bench.turn(300.0)
    assert (bench.intake.sweeps, bench.intake.missed) == (2, 1)
    assert bench.intake.sweep_seconds == RHYTHM.poll_seconds
    assert [line["event"] for line in told] == ["watch.missed"]
    assert (told[0]["files"], told[0]["sweep_seconds"]) == (1, 5.0)
    assert bench.turn(5.0) == ["told.jpg", "untold.jpg"]
    assert (bench.intake.sweeps, bench.intake.sweep_seconds) == (3, 10.0)
    bench.turns(700.0, step=5.0)
    assert bench.intake.sweep_seconds == RHYTHM.sweep_seconds
    assert bench.intake.missed == 1


@pytest.mark.parametrize(
    "rhythm",
    [
        replace(RHYTHM, events=False),
        replace(RHYTHM, polled=("",)),
        replace(RHYTHM, polled=("nas/",)),
    ],
)
def test_where_no_event_was_to_come_none_is_missed(tmp_path: Path, rhythm: Rhythm) -> None:
    bench = Bench(_made(tmp_path), rhythm, trust_ctime=True)
    (bench.folder / "nas").mkdir()
    bench.turn()
    bench.turn(10.0)
    bench.drop("nas/a.jpg")
    bench.turn(300.0)
    assert bench.intake.missed == 0
    assert bench.intake.waiting == 1


def test_a_folder_that_was_moved_in_without_a_word_was_missed_too(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=True)
    (tmp_path / "shoes").mkdir()
    (tmp_path / "shoes" / "a.jpg").write_bytes(PICTURE)
    bench.turn(10.0)
    (tmp_path / "shoes").rename(bench.folder / "shoes")
    bench.turn(300.0)
    assert bench.intake.missed == 1


def test_what_lay_there_before_the_watching_was_not_missed(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=True)
    bench.turn()
    bench.turn(10.0)
    bench.drop("a.jpg")
    bench.intake.set_rhythm(RHYTHM)
    bench.turn(400.0)
    assert bench.intake.missed == 0
    assert bench.intake.sweeps == 2


def test_where_there_are_no_events_only_that_folder_is_swept_often(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), replace(RHYTHM, polled=("nas/",)), leases=False)
    bench.drop("here/a.jpg")
    bench.drop("nas/x/a.jpg")
    assert bench.turns(3.0) == ["here/a.jpg", "nas/x/a.jpg"]
    bench.drop("here/b.jpg")
    bench.drop("nas/x/b.jpg")
    assert bench.turns(9.0) == ["here/a.jpg", "nas/x/a.jpg", "nas/x/b.jpg"]
    assert bench.intake.sweeps == 1
    assert bench.turns(300.0, step=1.0) == [
        "here/a.jpg",
        "here/b.jpg",
        "nas/x/a.jpg",
        "nas/x/b.jpg",
    ]


def test_a_doubt_brings_a_sweep_and_a_thousand_doubts_one_a_second(bench: Bench) -> None:
    bench.turn()
    for _ in range(1000):
        bench.intake.doubt("events were lost")
    bench.turns(0.9)
    assert bench.intake.sweeps == 1
    bench.turn(0.2)
    assert bench.intake.sweeps == 2
    bench.turns(20.0)
    assert bench.intake.sweeps == 2


def test_a_sweep_that_must_not_begin_yet_is_slept_for(tmp_path: Path) -> None:
    """Waited for in the past it would be asked for without end, and nothing else would run."""
    bench = Bench(_made(tmp_path), rhythm=Rhythm(300.0, 0.25, ("",)))
    bench.turn()
    bench.turn(0.5)
    assert bench.intake.sweeps == 1
    assert bench.intake._next_moment() == 1.0
    bench.turn(0.5)
    assert bench.intake.sweeps == 2


def test_a_doubt_during_a_sweep_brings_another_one(bench: Bench) -> None:
    bench.turn()

    def doubts(_: str) -> Override:
        bench.intake.doubt("events were lost")
        return Override()

    bench.intake._inbox = Inbox(bench.folder, Ignore(), override=doubts)
    bench.drop(FILE, b"")
    bench.intake.doubt("")
    bench.turn(1.0)
    assert bench.intake.sweeps == 2
    bench.turns(2.0)
    assert bench.intake.sweeps == 3  # the file is read once, and so doubts once
    bench.turns(20.0)
    assert bench.intake.sweeps == 3


def test_more_hints_than_are_kept_become_a_sweep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "HINTS", 10)
    bench.turn()
    for number in range(30):
        bench.drop(f"{number}.jpg")
        bench.intake.hint(f"{number}.jpg")
    assert len(bench.turns(4.0)) == 30
    assert bench.intake.sweeps == 2


def test_what_has_no_room_lies_in_the_inbox_is_counted_and_found_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM", 10)
    bench.room = 0
    for number in range(35):
        bench.drop(f"{number}.jpg")
    bench.turns(8.0)
    assert len(bench.intake._watched) + len(bench.intake._settled) == 10
    assert (bench.intake.waiting, bench.intake.lying) == (35, 25)
    assert not bench.intake.idle
    bench.room = 1000
    assert len(bench.turns(20.0)) == 35
    assert len(set(bench.claimed)) == 35
    assert (bench.intake.waiting, bench.intake.idle) == (0, True)


def test_how_long_the_oldest_waits_is_told(bench: Bench) -> None:
    bench.room = 0
    assert bench.intake.oldest_waiting_seconds == 0.0
    bench.drop("a.jpg")
    bench.turn()
    bench.turns(30.0)
    bench.drop("b.jpg")
    bench.intake.hint("b.jpg")
    bench.turns(10.0)
    assert bench.intake.oldest_waiting_seconds == pytest.approx(40.0)
    bench.room = 9
    bench.turns(1.0)
    assert bench.intake.oldest_waiting_seconds == 0.0


# --- the inbox is lost ----------------------------------------------------------------------


def test_a_lost_inbox_is_not_an_empty_one(bench: Bench, tmp_path: Path) -> None:
    bench.drop("a.jpg")
    assert bench.turns(3.0) == ["a.jpg"]
    bench.folder.rename(tmp_path / "away")
    bench.intake.doubt("")
    bench.turns(10.0)
    assert bench.intake.sweeps == 1
    assert not bench.intake.idle
    (tmp_path / "away").rename(bench.folder)
    bench.drop("b.jpg")
    bench.intake.doubt("")
    assert bench.turns(4.0) == ["a.jpg", "b.jpg"]  # a.jpg is claimed: not once more


# --- replaced, dropped again, let go --------------------------------------------------------


def test_a_claimed_file_is_not_claimed_again_until_it_is_let_go(bench: Bench) -> None:
    path = bench.drop("a.jpg")
    assert bench.turns(3.0) == ["a.jpg"]
    path.write_bytes(photo(2))
    bench.intake.hint("a.jpg")
    bench.intake.doubt("")
    assert bench.turns(10.0) == ["a.jpg"]
    bench.intake.let_go("a.jpg")
    assert bench.turns(3.0) == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda path: path.touch(), True),
        (lambda path: path.write_bytes(photo(2)), True),
        (lambda _: None, False),
    ],
)
def test_what_is_kept_out_is_left_alone_until_it_changes(
    bench: Bench, change: Callable[[Path], None], again: bool
) -> None:
    path = bench.drop("a.jpg")
    bench.turns(3.0)
    identity = Inbox(bench.folder, Ignore()).look(["a.jpg"])[0].identity
    bench.intake.keep_out("a.jpg", identity)
    bench.intake.finished("a.jpg")
    change(path)
    bench.intake.hint("a.jpg")
    assert (bench.turns(3.0) == ["a.jpg", "a.jpg"]) is again


def test_a_file_that_goes_while_it_is_waited_for_is_forgotten(bench: Bench) -> None:
    path = bench.drop("a.jpg")
    bench.turn()
    path.unlink()
    assert bench.turns(5.0) == []
    assert bench.intake.idle


@pytest.mark.parametrize("seconds", [-4e8, 4e8], ids=["an old mtime", "an mtime in the future"])
@pytest.mark.parametrize("trust_ctime", [True, False])
def test_the_time_of_modification_means_nothing(
    tmp_path: Path, seconds: float, trust_ctime: bool
) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=trust_ctime)
    path = bench.drop("a.jpg")
    moment = path.stat().st_mtime + seconds
    os.utime(path, (moment, moment))
    assert bench.turns(3.0) == ["a.jpg"]


def test_a_clock_that_was_set_back_delays_nothing(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=True)
    bench.drop("a.jpg")
    before = bench._wall
    bench.intake._clock = Clock(lambda: before() - 1e6, lambda: bench.passed)
    assert bench.turns(3.0) == ["a.jpg"]


# --- what a folder has of its own -----------------------------------------------------------


def test_a_folder_can_ignore_what_others_take(bench: Bench) -> None:
    bench.drop("raw/.bgremover.yaml", b"watch: {ignore: ['*.png']}")
    for name in ("raw/a.jpg", "raw/a.png", "raw/x/b.png", "a.png"):
        bench.drop(name)
    assert bench.turns(3.0) == ["a.png", "raw/a.jpg"]


def test_a_bad_file_holds_its_folder_with_one_word_until_it_is_mended(
    bench: Bench, told: list[Any]
) -> None:
    bench.drop("shoes/.bgremover.yaml", b"originals: shred")
    bench.drop("shoes/red/a.jpg")
    bench.drop("boots/a.jpg")
    assert bench.turns(3.0) == ["boots/a.jpg"]
    bench.intake.hint("shoes/red/a.jpg")
    bench.intake.doubt("")
    assert bench.turns(3.0) == ["boots/a.jpg"]
    assert [line["event"] for line in told] == ["image.ignored"]
    assert told[0]["file"] == "shoes/.bgremover.yaml"
    assert "originals (line 1): shred will not do" in told[0]["why"]
    bench.drop("shoes/.bgremover.yaml", b"originals: keep")
    bench.intake.hint("shoes/.bgremover.yaml")
    assert bench.turns(4.0) == ["boots/a.jpg", "shoes/red/a.jpg"]


def test_only_what_its_folder_keeps_still_is_kept_out_after_a_start(bench: Bench) -> None:
    bench.drop("keep/.bgremover.yaml", b"originals: keep")
    bench.drop("was/.bgremover.yaml", b"output: {review: off}")
    names = ("keep/a.jpg", "was/a.jpg", "keep/changed.jpg")
    kept = [Kept(name, Identity.of(bench.drop(name).stat())) for name in names]
    bench.drop("keep/changed.jpg", PICTURE + b"more")
    asyncio.run(bench.intake.keep_out_own(kept))
    assert bench.turns(3.0) == ["keep/changed.jpg", "was/a.jpg"]


def test_a_mended_file_is_no_missed_event(tmp_path: Path) -> None:
    bench = Bench(_made(tmp_path), trust_ctime=True)
    bench.turn()
    bench.turn(10.0)
    bench.drop("shoes/.bgremover.yaml", b"?")
    bench.drop("shoes/a.jpg")
    bench.intake.hint("shoes/a.jpg")
    bench.turn(50.0)
    (bench.folder / "shoes/.bgremover.yaml").unlink()
    bench.intake.hint("shoes/.bgremover.yaml")
    bench.turn(2.0)
    assert bench.turns(3.0) == ["shoes/a.jpg"]
    assert bench.intake.missed == 0
