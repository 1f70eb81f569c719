"""PUID, PGID and UMASK: who the program becomes, and what it says when it cannot."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.container import Ids, Wanted, enter, wanted
from bgremover.core.errors import SetupError
from tests.apart import NOBODY, apart

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def asked(**variables: str) -> Wanted:
    return wanted(variables)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Wanted(None, None)),
        ({"PUID": "", "PGID": " ", "UMASK": ""}, Wanted(None, None)),
        ({"PUID": "99", "PGID": "100"}, Wanted(Ids(99, 100), None)),
        ({"PUID": " 99\r", "PGID": "100 "}, Wanted(Ids(99, 100), None)),
        ({"PUID": "0", "PGID": "0"}, Wanted(Ids(0, 0), None)),
        ({"PUID": "4294967294", "PGID": "1"}, Wanted(Ids(4294967294, 1), None)),
        ({"UMASK": "022"}, Wanted(None, 0o022)),
        ({"UMASK": "0002"}, Wanted(None, 0o002)),
        ({"UMASK": "0"}, Wanted(None, 0)),
        ({"UMASK": "777"}, Wanted(None, 0o777)),
    ],
)
def test_what_is_asked_for(variables: dict[str, str], expected: Wanted) -> None:
    assert wanted(variables) == expected


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PUID": "nobody", "PGID": "100"}, ["PUID"]),
        ({"PUID": "-1", "PGID": "1"}, ["PUID"]),
        ({"PUID": "4294967295", "PGID": "1"}, ["PUID"]),
        ({"PUID": "1.5", "PGID": "0x1"}, ["PUID", "PGID"]),
        ({"PUID": "\u0661", "PGID": "1"}, ["PUID"]),
        ({"PUID": "99"}, ["PGID"]),
        ({"PGID": "99"}, ["PUID"]),
        ({"PGID": "x"}, ["PGID", "PUID"]),
        ({"UMASK": "8"}, ["UMASK"]),
        ({"UMASK": "1777"}, ["UMASK"]),
        ({"UMASK": "u=rwx"}, ["UMASK"]),
        ({"PUID": "a", "PGID": "b", "UMASK": "c"}, ["PUID", "PGID", "UMASK"]),
    ],
)
def test_every_mistake_is_named_with_a_remedy(variables: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SetupError) as caught:
        wanted(variables)
    lines = caught.value.message.splitlines()
    assert [line.partition(":")[0] for line in lines] == named
    assert all(". Give " in line or ". Set both" in line for line in lines)


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=6))
@example("99", "100", "022")
def test_no_text_makes_an_id_or_umask_that_the_kernel_refuses(
    user: str, group: str, umask: str
) -> None:
    try:
        found = asked(PUID=user, PGID=group, UMASK=umask)
    except SetupError:
        return
    assert found.ids is None or max(found.ids.user, found.ids.group) < 2**32 - 1
    assert found.umask is None or found.umask <= 0o777


@needs_root
def test_root_becomes_the_user_for_good_and_leaves_its_groups() -> None:
    def piece() -> None:
        os.setgroups([0, 4])
        enter({"PUID": "4711", "PGID": "100"})
        assert os.getresuid() == (4711, 4711, 4711)
        assert os.getresgid() == (100, 100, 100)
        assert os.getgroups() in ([], [100])
        with pytest.raises(PermissionError):
            os.setuid(0)

    apart(piece)


def test_the_umask_holds_for_new_files(tmp_path: Path) -> None:
    def piece() -> None:
        enter({"UMASK": "027"})
        (tmp_path / "new").touch(0o666)

    apart(piece)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


PROGRAM = """
import os, sys
from bgremover.container import enter
from bgremover.core.errors import SetupError
uid = int(sys.argv[1])
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
try:
    enter(dict(variable.split("=") for variable in sys.argv[2:]))
except SetupError as fault:
    sys.exit(fault.message)
print(os.geteuid(), os.getegid())
"""


def started(
    *variables: str, uid: int, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, sys.executable, "-c", PROGRAM, str(uid), *variables],
        env={"PATH": os.environ["PATH"]},  # no coverage: another user could not save it
        capture_output=True,
        text=True,
        check=False,
    )


@needs_root
def test_another_user_is_told_that_nothing_comes_of_it() -> None:
    done = started("PUID=99", "PGID=100", uid=NOBODY)
    assert done.stdout == f"{NOBODY} {NOBODY}\n"
    assert done.stderr == (
        "bgremover: warning: PUID and PGID are ignored: only root can change the user, "
        f"this is {NOBODY}:{NOBODY}\n"
    )


@needs_root
def test_who_is_the_user_already_hears_nothing() -> None:
    done = started(f"PUID={NOBODY}", f"PGID={NOBODY}", uid=NOBODY)
    assert (done.stdout, done.stderr) == (f"{NOBODY} {NOBODY}\n", "")


SETPRIV = shutil.which("setpriv")


@needs_root
@pytest.mark.skipif(SETPRIV is None, reason="needs setpriv (apt-get install util-linux)")
def test_root_without_the_capabilities_is_told_what_to_give() -> None:
    assert SETPRIV is not None
    bare = (SETPRIV, "--bounding-set=-setuid,-setgid")
    done = started("PUID=99", "PGID=100", uid=0, under=bare)
    assert (done.returncode, done.stdout) == (1, "")
    assert "may not become 99:100" in done.stderr
    assert "the capabilities SETUID and SETGID, or start it with --user 99:100" in done.stderr


def test_the_program_ends_with_78_where_the_variables_make_no_sense() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bgremover", "schema"],
        env={**os.environ, "PUID": "me", "PGID": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        'bgremover: PUID: "me" is no id. Give a number; `id` on the NAS shows it.\n'
    )
