"""Which of these tests ask the programs that they start what they have run.

It takes a program half as long again to tell. Here are those that show most of it; the others,
which kill it, trace it or start it many times, would only repeat them.
"""

import pytest

ASKED = {
    *("test_daemon", "test_health", "test_money", "test_notify", "test_once", "test_pictures"),
    *("test_rebuild", "test_reread", "test_web"),
}


@pytest.fixture(autouse=True)
def _asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.stem not in ASKED:
        monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
