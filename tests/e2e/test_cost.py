"""What one image costs: counted, not timed, so that it holds on any machine.

The budget is what was counted, and a third more where the count depends on what comes together.
It is raised only by a commit that says why.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bgremover.sandbox.app import SandboxOptions
from bgremover.sandbox.server import RunningSandbox
from tests.arrivals import noise
from tests.site import KEY, Site, photo

FEW, MANY = 5, 25
ATTEMPTS = 3
CALLS = {
    "fsync": 4.1,  # the cut-out, its folder, the archive's and the inbox's folder
    "fdatasync": 3.4,  # durable commits of the ledger, which images share: 1.7 to 2.6
    "commits": 4.4,  # of the ledger, durable or not: 2.4 to 3.3
    "pwrite64": 95,  # pages of the ledger, to its log and at a checkpoint: 57 to 73
    "renameat2": 2.1,  # published, archived
    "openat": 17,
    "read": 28,
    "connect": 1.5,  # one for each upload, and one for all downloads at a time
}
BYTES = 4.5
"""How often the bytes of an original are read: structure, decoder, sum and upload."""
DECODES = {
    "result": {"jpeg_decoder": 1, "zip_decoder": 1, "decompressobj": 1},
    "original": {"jpeg_decoder": 2, "zip_decoder": 1, "decompressobj": 1},
}
"""By output.resolution: the original's, the result's, and that which sees whether it is whole."""

COUNTED = ("fsync", "fdatasync", "renameat2", "openat", "read", "pread64", "pwrite64", "connect")
TRACE = ("strace", "-f", "-qq", "-y", "-x", "-s", "24", "-e", f"trace={','.join(COUNTED)}", "-o")
COUNT_DECODERS = """
import atexit, collections, json, runpy, sys, threading
counts = collections.Counter()
def note(frame, event, called):
    if event == "c_call" and called.__name__.endswith(("_decoder", "decompressobj")):
        counts[called.__name__] += 1
atexit.register(lambda: json.dump(counts, open({told!r}, "w")))
threading.setprofile(note)
sys.setprofile(note)
sys.argv = ["bgremover", "once"]
runpy.run_module("bgremover", run_name="__main__", alter_sys=True)
"""


_BYTES_4 = r"(?:\\x..){4}"
_FRAME = rf'^pwrite64\(\d+<[^>]*-wal>, "{_BYTES_4}({_BYTES_4}).*, 24, \d+\)'


def run(site: Site, *command: str) -> None:
    """Work through a site's inbox with `once`, started by a command, with nothing beside it."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(site.root),
        "IDEOGRAM_API_KEY": KEY,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(command, cwd=site.root, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def traced(root: Path, images: list[bytes]) -> tuple[Site, str]:
    """Return where `once` has worked, and its system calls, each with the paths that it names."""
    told = root / "calls"
    with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as sandbox:
        site = Site(root / "site", sandbox.url)
        for number, image in enumerate(images):
            site.drop(f"{number}.jpg", image)
        python = os.path.realpath(sys.executable)
        run(site, *TRACE, str(told), python, "-m", "bgremover", "once")
    return site, joined(told.read_text(errors="replace"))


def joined(text: str) -> str:
    """Put calls that strace has told in two parts, because of another thread, together."""
    begun: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        elif found := re.match(r"<\.\.\. \w+ resumed>", call):
            lines.append(begun.pop(thread) + call[found.end() :])
        else:
            lines.append(call)
    return "\n".join(lines)


def calls(text: str) -> Counter[str]:
    """Count system calls, and the commits of the ledger among them."""
    counts = Counter(re.findall(r"^(\w+)\(", text, re.MULTILINE))
    # The head of a frame of the write-ahead log; it ends a commit when it tells a size.
    frames = re.findall(
        r'^pwrite64\(\d+<[^>]*-wal>, "((?:\\x..)+)"(?:\.\.\.)?, 24,', text, re.MULTILINE
    )
    sizes = [frame[16:32] for frame in frames]
    counts["commits"] = sum(size != r"\x00" * 4 for size in sizes)
    return counts


def bytes_read(text: str, folders: tuple[Path, ...]) -> int:
    """Add up what was read of files in some folders."""
    found = re.findall(r"^(?:read|pread64)\(\d+<([^>]*)>.* = (\d+)$", text, re.MULTILINE)
    inside = tuple(f"{folder}/" for folder in folders)
    return sum(int(count) for path, count in found if path.startswith(inside))


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt-get install strace)"
)


def cost_of_each(root: Path) -> dict[str, float]:
    """Return what an image more costs."""
    few, many = (
        calls(traced(root / f"{images}", [photo(number) for number in range(images)])[1])
        for images in (FEW, MANY)
    )
    return {name: (many[name] - few[name]) / (MANY - FEW) for name in CALLS}


@needs_strace
def test_an_image_costs_no_more_calls_than_its_budget(tmp_path: Path) -> None:
    # On a busy machine images may come one by one and share no commit: what counts is what they
    # cost where they come together.
    above: dict[str, float] = {}
    for attempt in range(ATTEMPTS):
        each = cost_of_each(tmp_path / f"{attempt}")
        assert each["fsync"] >= 3  # it counts something
        assert each["commits"] >= 1
        above = {name: cost for name, cost in each.items() if cost > CALLS[name]}
        if not above:
            break
    assert above == {}


@needs_strace
def test_the_bytes_of_an_original_are_read_no_more_often_than_needed(tmp_path: Path) -> None:
    images = [noise(number) for number in range(3)]
    site, text = traced(tmp_path, images)
    times = bytes_read(text, (site.inbox, site.archive)) / sum(map(len, images))
    assert 1 <= times <= BYTES


@pytest.mark.parametrize("resolution", list(DECODES))
def test_a_picture_is_decoded_no_more_often_than_needed(tmp_path: Path, resolution: str) -> None:
    told, images = tmp_path / "decoders", 3
    with RunningSandbox(SandboxOptions(key=KEY, fixed_result=True)) as sandbox:
        site = Site(tmp_path / "site", sandbox.url, output={"resolution": resolution})
        for number in range(images):
            site.drop(f"{number}.jpg", photo(number))
        run(site, sys.executable, "-c", COUNT_DECODERS.format(told=str(told)))
    counts, budget = json.loads(told.read_text()), DECODES[resolution]
    assert counts["jpeg_decoder"] >= images  # it counts something
    each = {name: count / images for name, count in counts.items()}
    assert {name: cost for name, cost in each.items() if cost > budget.get(name, 0)} == {}
