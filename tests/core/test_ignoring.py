"""Which names are litter and which are images, and what the globs of the configuration mean."""

import fnmatch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bgremover.core.ignoring import FILES, FOLDERS, Ignore
from tests.fakes import names, paths

BUILT_IN = Ignore()

LITTER = [
    "._IMG_1.jpg",
    ".DS_Store",
    ".localized",
    "Icon\r",
    "Thumbs.db",
    "thumbs.db",
    "THUMBS.DB",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "Desktop.ini",
    "~$photo.png",
    "~syncthing~IMG_1.jpg.tmp",
    ".syncthing.IMG_1.jpg.tmp",
    ".IMG_1.jpg.AbC123",  # rsync
    ".nfs000000000123456700000001",
    ".fuse_hidden0000000300000001",
    ".smbdelete1",
    ".bgremover-0a1b2c3d",
    "IMG_1.jpg.part",
    "IMG_1.jpg.PART",
    "IMG_1.jpg.partial",
    "IMG_1.jpg.filepart",
    "IMG_1.jpg.crdownload",
    "Unconfirmed 123456.crdownload",
    "IMG_1.jpg.download",
    "IMG_1.jpg.opdownload",
    "IMG_1.jpg.tmp",
    "IMG_1.jpg.temp",
    "~WRL0001.tmp",
    "IMG_1.jpg.swp",
    "IMG_1.jpg~",
    "IMG_1.jpg.!ut",
    "IMG_1.jpg.aria2",
    "IMG_1.jpg.lock",
    "IMG_1.jpg@SynoEAStream",
    "IMG_1.jpg@SynoResource",
]

LITTER_FOLDERS = [
    "@eaDir",
    "@EADIR",
    "#recycle",
    "#snapshot",
    "@Recycle",
    "@Recently-Snapshot",
    "@tmp",
    ".@__thumb",
    ".stversions",
    ".stfolder",
    ".Trash-1000",
    ".Trashes",
    ".AppleDouble",
    ".Spotlight-V100",
    ".TemporaryItems",
    ".snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__MACOSX",
    "Network Trash Folder",
    "Temporary Items",
    ".git",
]

IMAGES = [
    "IMG_1.jpg",
    "IMG_1.JPG",
    "a.jpeg",
    "a.png",
    "a.webp",
    "a.heic",
    "no suffix",
    "holiday in Rome (1).jpg",
    " leading.jpg",
    "trailing .jpg",
    "a.b.c.jpg",
    "v1.0.tmp.png",
    "photo.part.jpg",
    "photo~1.jpg",
    "~photo.jpg",
    "#1.jpg",
    "@home.jpg",
    "$10.jpg",
    "-rf.jpg",
    "[1].jpg",
    "part",
    "tmp.jpg",
    "lock.png",
    "desktop.ini.png",
    "Thumbs.db.jpg",
    "Iconic.jpg",
    "überraschung.jpg",
    "日本.png",
    "😀.png",
    "line\nend.jpg",
    "caf\udce9.png",
]


# --- the built-in list ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LITTER)
def test_litter_is_ignored_wherever_it_lies(name: str) -> None:
    assert BUILT_IN.file(name, name)
    assert BUILT_IN.path(name)
    assert BUILT_IN.path(f"shoes/red/{name}")


@pytest.mark.parametrize("name", LITTER_FOLDERS)
def test_nothing_below_a_litter_folder_is_looked_at(name: str) -> None:
    assert BUILT_IN.folder(name, name)
    assert BUILT_IN.path(f"{name}/IMG_1.jpg")
    assert BUILT_IN.path(f"shoes/{name}/IMG_1.jpg/SYNOFILE_THUMB_XL.jpg")


@pytest.mark.parametrize("name", IMAGES)
def test_an_ordinary_name_is_never_ignored(name: str) -> None:
    assert not BUILT_IN.file(name, name)
    assert BUILT_IN.why(f"shoes/{name}") is None


@pytest.mark.parametrize(
    "name", ["shoes", "a.part", "thumbs.db", "desktop.ini", "x.tmp", "2026-01", "eaDir", "recycle"]
)
def test_an_ordinary_folder_is_entered_whatever_its_suffix(name: str) -> None:
    assert not BUILT_IN.folder(name, name)
    assert BUILT_IN.why(f"{name}/IMG_1.jpg") is None


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "lost+found"])
def test_a_file_that_is_called_like_a_litter_folder_is_no_litter(name: str) -> None:
    assert not BUILT_IN.file(name, name)


@pytest.mark.parametrize("glob", FILES)
def test_each_glob_for_files_is_the_reason_for_some_name(glob: str) -> None:
    assert any(fnmatch.fnmatchcase(name, glob) for name in LITTER), f"no example for {glob!r}"


@pytest.mark.parametrize("glob", FOLDERS)
def test_each_glob_for_folders_is_the_reason_for_some_name(glob: str) -> None:
    assert any(fnmatch.fnmatchcase(name, glob) for name in LITTER_FOLDERS), f"none for {glob!r}"


@given(names)
@example(".x")
def test_a_hidden_name_is_ignored_and_its_folder_not_entered(name: str) -> None:
    assert BUILT_IN.file("." + name, "." + name)
    assert BUILT_IN.folder("." + name, "." + name)


@given(names)
@example("IMG_1")
@example("~$a")
def test_a_visible_name_that_ends_like_an_image_is_ignored_for_its_beginning_only(
    name: str,
) -> None:
    image = name + ".jpg"
    assert BUILT_IN.file(image, image) is image.lower().startswith((".", "~$", "~syncthing~"))


# --- the globs of the configuration ---------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "ignored"),
    [
        # a name, in any folder
        ("*.psd", "a.psd", True),
        ("*.psd", "x/y/a.PSD", True),
        ("*.psd", "a.psd.jpg", False),
        ("draft*", "draft-1.jpg", True),
        ("draft*", "drafts/a.jpg", True),
        ("draft*", "my/drafts/a.jpg", True),
        ("draft*", "my draft.jpg", False),
        ("?.jpg", "a.jpg", True),
        ("?.jpg", "ab.jpg", False),
        ("[!a].jpg", "b.jpg", True),
        ("[!a].jpg", "a.jpg", False),
        ("**", "a.jpg", True),
        # a path below the inbox
        ("raw/*.jpg", "raw/a.jpg", True),
        ("raw/*.jpg", "RAW/A.JPG", True),
        ("raw/*.jpg", "x/raw/a.jpg", False),
        ("raw/*.jpg", "raw/x/a.jpg", False),
        ("raw/*.jpg", "a.jpg", False),
        ("/a.jpg", "a.jpg", True),
        ("/a.jpg", "x/a.jpg", False),
        ("raw/old", "raw/old/x/a.jpg", True),
        ("raw/old/", "raw/old/x/a.jpg", True),
        ("raw/old", "raw/older/a.jpg", False),
        ("raw/", "raw/a.jpg", True),
        ("raw/", "x/raw/a.jpg", False),
        # any folders
        ("**/raw/*.jpg", "raw/a.jpg", True),
        ("**/raw/*.jpg", "x/y/raw/a.jpg", True),
        ("**/raw/*.jpg", "x/y/draw/a.jpg", False),
        ("a/**/z.jpg", "a/z.jpg", True),
        ("a/**/z.jpg", "a/b/c/z.jpg", True),
        ("a/**/z.jpg", "a/b/xz.jpg", False),
        ("raw/**", "raw/a.jpg", True),
        ("raw/**", "raw/x/y/a.jpg", True),
        ("raw/**", "raw.jpg", False),
        ("raw/**", "x/raw/a.jpg", False),
        ("**/raw/**", "x/raw/y/a.jpg", True),
        ("**/raw/**", "x/draw/y/a.jpg", False),
        # a wildcard stays within a name
        ("a?b/*.jpg", "a/b/c.jpg", False),
        ("a?b/*.jpg", "a-b/c.jpg", True),
        ("a[!x]b/*.jpg", "a/b/c.jpg", False),
        ("a[!x]b/*.jpg", "a-b/c.jpg", True),
        ("a[!x]b/*.jpg", "axb/c.jpg", False),
        ("x/[.*]b.jpg", "x/*b.jpg", True),
        ("x/[.*]b.jpg", "x/ab.jpg", False),
        ("x/[a-c]*.*", "x/b1.jpg", True),
        ("x/[a-c]*.*", "x/d1.jpg", False),
        ("x/[a", "x/[a", True),
        # what stands for itself
        ("x/a.jpg", "x/a_jpg", False),
        ("x/(1)+$.jpg", "x/(1)+$.jpg", True),
        ("x/line\nend.jpg", "x/line\nend.jpg", True),
        ("x/*.jpg", "x/line\nend.jpg", True),
        ("x/caf*.png", "x/caf\udce9.png", True),
        ("x/a.jpg", "x/a.jpg\n", False),
    ],
)
def test_a_glob_means_what_the_documentation_says(glob: str, path: str, ignored: bool) -> None:
    assert Ignore((glob,)).path(path) is ignored


def test_a_glob_for_folders_closes_the_folder_itself() -> None:
    ignore = Ignore(("raw/old", "draft*"))
    assert ignore.folder("old", "raw/old")
    assert not ignore.folder("old", "old")
    assert ignore.folder("drafts", "x/drafts")


def test_all_globs_count_whether_they_are_names_or_paths() -> None:
    ignore = Ignore(("*.psd", "raw/*", "*.bak", "old/**"))
    assert all(map(ignore.path, ["a.psd", "raw/a.jpg", "a.bak", "old/x/a.jpg", ".hidden"]))
    assert not ignore.path("new/a.jpg")


def test_equal_globs_make_equal_lists() -> None:
    assert Ignore(("a/*",)) == Ignore(("a/*",)) != Ignore(("b/*",))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a/b/IMG_1.jpg.part", "the name IMG_1.jpg.part is ignored: *.part of the built-in list"),
        ("a/@eaDir/b/IMG_1.jpg", "the folder a/@eaDir is ignored: @eaDir of the built-in list"),
        ("a/IMG_1.jpg", None),
    ],
)
def test_it_says_why(path: str, why: str | None) -> None:
    assert BUILT_IN.why(path) == why


# --- laws -----------------------------------------------------------------------------------

globs = st.lists(
    st.sampled_from(["*", "**", "?", "a", "b", ".", "[ab]", "[!a]", "/", "[", "]", "\n", "é"]),
    min_size=1,
    max_size=8,
).map("".join)
short_paths = st.lists(st.text("ab.é\n", min_size=1, max_size=3), min_size=1, max_size=4).map(
    "/".join
)


def _matches(parts: list[str], found: list[str]) -> bool:
    """Compare name by name: what globs with "/" are documented to mean, said another way."""
    if not parts:
        return not found
    first, *rest = parts
    if first == "**":
        least = 0 if rest else 1
        return any(_matches(rest, found[taken:]) for taken in range(least, len(found) + 1))
    return bool(found) and fnmatch.fnmatchcase(found[0], first) and _matches(rest, found[1:])


@given(globs.filter(lambda glob: "/" in glob.strip("/")), short_paths)
@example("a/**/b", "a/b/b")
@example("**/**", "a")
def test_a_glob_with_a_slash_is_compared_name_by_name(glob: str, path: str) -> None:
    name = path.rpartition("/")[2]
    expected = _matches(glob.strip("/").split("/"), path.split("/"))
    assert Ignore((glob,)).file(name, path) is (expected or BUILT_IN.file(name, path))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("x/" + "*a" * 14 + "b", "x/" + "a" * 250),
        ("x/" + "*a" * 200 + "*b/c", "x/" + "a" * 250 + "/c"),
        ("**/a/" * 10 + "b", "a/" * 60 + "c"),
        ("**/" * 40 + "b", "a/" * 60 + "c"),
        ("**/*a*a*a/" * 10 + "b", ("a" * 100 + "/") * 40 + "c"),
        ("*a" * 100 + "b", "a" * 250),
    ],
)
def test_no_glob_keeps_the_program_busy(glob: str, path: str) -> None:
    """Backtracking would take longer than the universe has lasted."""
    name = path.rpartition("/")[2]
    assert not Ignore((glob,)).file(name, path)


@given(paths)
@example("shoes/IMG_1.jpg")
def test_no_globs_ignore_nothing_but_the_built_in_list(path: str) -> None:
    *folders, name = path.split("/")
    litter = any(BUILT_IN.folder(folder, folder) for folder in folders)
    assert BUILT_IN.path(path) is (litter or BUILT_IN.file(name, name))
