"""The machine's faults keep their names while pictures are worked on."""

import errno
import io
import os

import pytest

from bgremover.core.errors import DiskFull, TooManyOpenFiles
from bgremover.core.recipe import recipe_of
from bgremover.studio import finish, intake, opening, render, upload
from tests.studio.scenes import encoded, result_of, scene

SCENE = scene((60, 40))
PHOTO, RESULT = encoded(SCENE.photo, "BMP"), result_of(SCENE)


class Full(io.BytesIO):
    """A file on a disk without space."""

    def write(self, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_fault_of_the_picture() -> None:
    photo, result = io.BytesIO(PHOTO), io.BytesIO(RESULT)
    found = intake.look(photo, intake.Limits(1_000_000))
    with pytest.raises(DiskFull):
        finish.finish(photo, "BMP", result, Full(), finish.Options())
    with pytest.raises(DiskFull):
        finish.pass_on(photo, "BMP", Full(), finish.Options())
    with pytest.raises(DiskFull):
        upload.prepare(photo, found, upload.Options(1_000_000), Full())
    with pytest.raises(DiskFull):
        render.render(render.Sources(result), recipe_of("webp"), Full())


def test_too_little_memory_is_no_fault_of_the_picture() -> None:
    for context in (opening.decoding(), opening.working("drawing")):
        with pytest.raises(TooManyOpenFiles), context:
            raise MemoryError
