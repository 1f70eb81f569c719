"""The sheet that shows a person what the presets do can be drawn, and is small."""

from pathlib import Path

from PIL import Image

from tests.contact_sheet import MOST_BYTES, draw


def test_the_sheet_is_drawn_and_small(tmp_path: Path) -> None:
    target = tmp_path / "docs/sheet.png"
    assert draw(target) <= MOST_BYTES
    with Image.open(target) as sheet:
        assert max(sheet.size) < 2000
