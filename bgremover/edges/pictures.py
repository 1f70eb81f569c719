"""Is it a picture, is it whole? Originals before they are paid for, results before they are kept.

The content decides, never the name. Structure is checked here, piece by piece and from the header
on, so that size limits hold before anything is unpacked; Pillow decodes only what is left to
decode, through the one plugin of the format, and never sees the metadata of a JPEG.
Image.open is not used: its process-wide pixel limit warns and refuses by rules of its own, and
its detection would offer hostile bytes to every other plugin.
"""

import errno
import hashlib
import io
import os
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import PIL.Image

from bgremover.core.errors import (
    Animated,
    BgremoverError,
    Blocked,
    BrokenResult,
    EmptyImage,
    NotAnImage,
    TooLarge,
    TooManyPixels,
    Truncated,
    Unreadable,
    UnsupportedFormat,
    local_fault,
)
from bgremover.core.job import Picture
from bgremover.core.naming import counted

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}

_PIECE = 1 << 16
_HEAD = 1024  # bytes that are enough to tell every kind of file
_TAIL = 64  # bytes in which the end of a whole file must show
_ZEROS = 16  # as many zero bytes at the end of a damaged file: its end was never written

# A whole bitmap is heavy, and so are the coefficients of a progressive JPEG: one at a time.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be uploaded: the bytes of a file and the pixels of a picture, at most."""

    max_upload_bytes: int
    max_pixels: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """A fetched result that is good: its width and height in pixels."""

    width: int
    height: int


class _Broken(Exception):
    """The bytes are not what their format asks for; `cut_off` if they are merely too few."""

    def __init__(self, message: str, *, cut_off: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.cut_off = cut_off


# --- the three questions --------------------------------------------------------------------


def inspect(file: BinaryIO, limits: Limits) -> Picture:
    """Find out whether an original can be sent.

    Args:
        file: The original, open for reading, at any position.
        limits: What may be uploaded.

    Returns:
        What it is. Width and height are as stored: a rotation of the EXIF data is not applied.

    Raises:
        FileFault: It cannot be sent: EmptyImage, NotAnImage, UnsupportedFormat, Animated,
            TooManyPixels, TooLarge, Truncated or Unreadable.
        Blocked: It may not be read.
        LocalFault: This machine cannot read it now.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        form = _form(file, size)
        if size > limits.max_upload_bytes:
            raise TooLarge(
                f"the file has {size / 1e6:.1f} MB, at most {limits.max_upload_bytes / 1e6:g}"
                " are taken"
            )
        width, height = _checked(file, size, form, limits.max_pixels)
        return Picture(_sha256(file), form, width, height)
    except OSError as error:
        raise _reading_failed(error) from error


def verify_result(file: BinaryIO, max_megapixels: float) -> Result:
    """Find out whether a fetched result may be kept: a whole PNG with a transparent pixel.

    Args:
        file: The result, open for reading, at any position.
        max_megapixels: How large it may be, in millions of pixels.

    Raises:
        BrokenResult: It may not; the message says why.
        LocalFault: This machine cannot read it now, or has not the memory.
    """
    try:
        header = _checked_result(file, max_megapixels)
        return Result(header.width, header.height)
    except _Broken as broken:
        how = "cut off" if broken.cut_off else "damaged"
        raise BrokenResult(f"the result is {how}: {broken.message}") from broken
    except MemoryError as error:
        no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        raise local_fault(no_memory, "decoding the result") from error
    except OSError as error:
        raise local_fault(error, "reading the result") from error


def whole(file: BinaryIO) -> bool | None:
    """Tell from the first and the last bytes whether a picture is complete. Decodes nothing.

    Returns:
        True: its end is where it belongs. False: a JPEG, PNG or WebP whose end does not show, so
        that it may be cut off. None: it is none of these.

    Raises:
        BgremoverError: It cannot be read, as `inspect` tells.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = _read(file, 12)
        file.seek(max(0, size - _TAIL))
        tail = _read(file, _TAIL)
    except OSError as error:
        raise _reading_failed(error) from error
    match _sendable(head):
        case "JPEG":
            return b"\xff\xd9" in tail
        case "PNG":
            return _IEND in tail
        case "WEBP":
            return _riff_end(head) <= size and any(tail)
        case _:
            return None


def _checked(file: BinaryIO, size: int, form: str, max_pixels: int) -> tuple[int, int]:
    check = {"JPEG": _check_jpeg, "PNG": _check_png, "WEBP": _check_webp}[form]
    file.seek(0)
    try:
        return check(file, size, max_pixels)
    except _Broken as broken:
        if broken.cut_off:
            raise Truncated(f"the {form} is cut off: {broken.message}") from broken
        if _ends_in_zeros(file, size):
            raise Truncated(f"the {form} was not written to its end, which is zeros") from broken
        raise NotAnImage(f"the {form} is damaged: {broken.message}") from broken
    except (MemoryError, PIL.Image.DecompressionBombError) as error:
        raise TooManyPixels("the picture needs more memory than there is") from error


def _ends_in_zeros(file: BinaryIO, size: int) -> bool:
    # Some copiers give the file its full length first: what is not written yet reads as zeros.
    file.seek(max(0, size - _ZEROS))
    return not any(_read(file, _ZEROS))


def _refuse_many(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the picture has {width * height / 1e6:.1f} megapixels ({width} x {height}),"
            f" at most {max_pixels / 1e6:g} are taken"
        )


def _read(file: BinaryIO, count: int) -> bytes:
    """Read so many bytes, or fewer where the file ends.

    A disk gives what lies before a bad block, and tells of the block when it is asked again.
    """
    data = b""
    while len(data) < count and (piece := file.read(count - len(data))):
        data += piece
    return data


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


# What file systems answer when the data of this one file are damaged or locked away.
_OF_THE_FILE = (
    errno.EBADMSG,
    errno.EUCLEAN,
    errno.ENODATA,
    errno.EILSEQ,
    errno.ENOKEY,
    errno.EKEYREJECTED,
)


def _reading_failed(error: OSError) -> BgremoverError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return Blocked(f"the original may not be read: {error.strerror}")
    if error.errno in _OF_THE_FILE:
        return Unreadable(f"the original cannot be read: {error.strerror}")
    return local_fault(error, "reading the original")


@contextmanager
def _decoding() -> Iterator[None]:
    """Let a decoder work, alone, and give all that it raises on hostile bytes one name."""
    with _one_at_a_time:
        try:
            yield
        except (MemoryError, PIL.Image.DecompressionBombError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's word, not the decoder's
            raise _Broken(str(error) or type(error).__name__) from error


# --- what it is -----------------------------------------------------------------------------

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
# Patterns of the first bytes. Two or three letters alone are not enough: text may begin with them.
_OTHERS = (
    (rb"GIF8[79]a", "a GIF"),
    (rb"II\*\0|MM\0\*", "a TIFF or a camera's RAW"),
    (rb"II\+\0|MM\0\+", "a TIFF"),
    (rb"II(RO|RS|U\0)|FUJIFILMCCD-RAW|FOVb|.{4}ftypcrx", "a camera's RAW"),
    (rb".{4}ftypavi[fs]", "an AVIF"),
    (rb".{4}ftyp(hei|hev)", "a HEIC"),
    (rb".{4}ftypm[is]f1", "a HEIC or AVIF"),
    (rb"BM.{4}\0{4}", "a BMP"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF-", "a PDF"),
    (rb"%!PS", "a PostScript file"),
    (rb"\xff\x0a|\0{3}\x0cJXL \r\n\x87\n", "a JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0{3}\x0cjP  \r\n\x87\n", "a JPEG 2000"),
    (rb"\0\0\x01\0|icns", "an icon"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR"),
    (rb"#\?RADIANCE", "a Radiance HDR"),
    (rb"DDS \x7c", "a DDS"),
    (rb"qoif", "a QOI"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"\x8aMNG|\x8bJNG", "a MNG or JNG"),
    (rb"\x89PNG.{8}CgBI", "a PNG in Apple's own variant (CgBI)"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.*?)?<svg[\s>]", "an SVG"),
)


def _form(file: BinaryIO, size: int) -> str:
    """Return the name of a format that can be sent; raise the fault that any other file is."""
    if size == 0:
        raise EmptyImage("the file has 0 bytes")
    file.seek(0)
    head = _read(file, _HEAD)
    if kind := _other_kind(head):
        raise UnsupportedFormat(f"the file is {kind}, which cannot be read here")
    if form := _sendable(head):
        return form
    if _begins(written := head.rstrip(b"\0")):
        raise Truncated(f"the file is not written yet: its {size} bytes begin with {written!r}")
    raise NotAnImage(f"the file is no known picture: it begins with {_readable(head[:12])}")


def _sendable(head: bytes) -> str | None:
    if head.startswith(_JPEG):
        return "JPEG"
    if head.startswith(_PNG):
        return "PNG"
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def _begins(head: bytes) -> bool:
    """Tell whether so few bytes may be the beginning of a picture."""
    riff = head[:4] == b"RIFF"[: len(head)] and head[8:] == b"WEBP"[: max(0, len(head) - 8)]
    return _JPEG.startswith(head) or _PNG.startswith(head) or riff


def _other_kind(head: bytes) -> str | None:
    kinds = (kind for magic, kind in _OTHERS if re.match(magic, head, re.DOTALL))
    return next(kinds, None)


# --- PNG ------------------------------------------------------------------------------------

_IEND = b"IEND\xaeB`\x82"
_MOST_CHUNKS = 100_000
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3
_WITH_ALPHA = (4, 6)
_FILTERS = bytes(range(5))
# Left, top, and the steps right and down of the seven passes of an interlaced PNG.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)

_Chunks = Iterator[tuple[bytes, Iterator[bytes]]]


@dataclass(frozen=True, slots=True)
class _Header:
    """The IHDR of a PNG."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def pixel_bits(self) -> int:
        return self.depth * _CHANNELS[self.colour]

    def passes(self) -> list[tuple[int, int]]:
        """Return bytes a row, with its filter byte, and rows of all passes that have pixels."""
        grids = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = [
            (-(-(self.width - left) // right), -(-(self.height - top) // down))
            for left, top, right, down in grids
        ]
        return [(1 + -(-w * self.pixel_bits // 8), h) for w, h in sizes if w > 0 and h > 0]


@dataclass(slots=True)
class _Findings:
    """What the chunks of a PNG say. `start` is the beginning of its unpacked data."""

    frames: int = 1
    palette: bool = False
    keyed: bool = False
    start: bytes = b""


class _Pixels:
    """Unpacks the data of a PNG in pieces, keeps none, and sees that all of it is there.

    Args:
        header: What the data must amount to.
    """

    def __init__(self, header: _Header) -> None:
        self.start = b""
        self._zlib = zlib.decompressobj()
        self._passes = header.passes()
        self._at = 0
        self._surplus = False

    def feed(self, data: bytes) -> None:
        """Take the next packed bytes. What comes after the last row is ignored by all readers."""
        try:
            while not (self._surplus or self._zlib.eof):
                piece = self._zlib.decompress(data, _PIECE)
                self._count(piece)
                if len(piece) < _PIECE:
                    break
                data = self._zlib.unconsumed_tail
        except zlib.error as error:
            raise _Broken(f"its data cannot be unpacked ({error})") from error

    def finish(self) -> None:
        """See that nothing is missing."""
        if self._passes:
            row, rows = self._passes[0]
            raise _Broken(f"it lacks {counted(rows - self._at // row, 'row')} of pixels")

    def _count(self, data: bytes) -> None:
        self.start += data[: 16 - len(self.start)]
        while data and self._passes:
            row, rows = self._passes[0]
            part, data = data[: row * rows - self._at], data[row * rows - self._at :]
            if part[-self._at % row :: row].translate(None, _FILTERS):
                raise _Broken("a row has a filter that does not exist")
            self._at += len(part)
            if self._at == row * rows:
                del self._passes[0]
                self._at = 0
        self._surplus = bool(data)


def _check_png(file: BinaryIO, _size: int, max_pixels: int) -> tuple[int, int]:
    header, chunks = _open_png(file)
    _refuse_many(header.width, header.height, max_pixels)
    findings = _read_png(header, chunks)
    if findings.frames > 1:
        raise Animated(f"the PNG is animated: it has {findings.frames} frames")
    return header.width, header.height


def _open_png(file: BinaryIO) -> tuple[_Header, _Chunks]:
    file.seek(len(_PNG))
    chunks = _chunks(file)
    kind, body = next(chunks)
    data = next(body, b"")
    if kind != b"IHDR" or len(data) != 13:  # noqa: PLR2004 - the size of every IHDR
        raise _Broken("it does not begin with a header (IHDR)")
    width, height = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    depth, colour, packing, filtering, interlacing = data[8:]
    if depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlacing > 1:
        raise _Broken(f"its header asks for what does not exist ({data[8:].hex()})")
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise _Broken(f"its header asks for {width} x {height} pixels")
    return _Header(width, height, depth, colour, bool(interlacing)), chunks


def _chunks(file: BinaryIO) -> _Chunks:
    """Yield kind and body of each chunk up to the end; what is not read of a body is skipped."""
    for _ in range(_MOST_CHUNKS):
        head = _read(file, 8)
        if len(head) < 8:  # noqa: PLR2004 - length and kind
            raise _Broken("it ends without an end chunk (IEND)", cut_off=True)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if not kind.isalpha() or length >= 1 << 31:
            raise _Broken(f"there is no chunk where one should be, but {head!r}")
        body = _body(file, kind, length)
        yield kind, body
        for _rest in body:
            pass
        if kind == b"IEND":
            return
    raise _Broken(f"it has more than {_MOST_CHUNKS} chunks")


def _body(file: BinaryIO, kind: bytes, length: int) -> Iterator[bytes]:
    checksum = zlib.crc32(kind)
    while length:
        piece = _read(file, min(length, _PIECE))
        if len(piece) < min(length, _PIECE):
            raise _Broken(f"it ends in the middle of chunk {kind.decode()}", cut_off=True)
        length -= len(piece)
        checksum = zlib.crc32(piece, checksum)
        yield piece
    stored = _read(file, 4)
    if len(stored) < 4:  # noqa: PLR2004 - a CRC-32
        raise _Broken(f"the checksum of chunk {kind.decode()} is missing", cut_off=True)
    if int.from_bytes(stored, "big") != checksum:
        raise _Broken(f"the checksum of chunk {kind.decode()} is wrong")


def _read_png(header: _Header, chunks: _Chunks) -> _Findings:
    pixels, found, before = _Pixels(header), _Findings(), b"IHDR"
    for kind, body in chunks:
        if kind == b"IDAT":
            _take_pixels(pixels, body, again=bool(pixels.start) and before != kind)
        else:
            _take_note(found, kind, body, early=not pixels.start)
        before = kind
    pixels.finish()
    if header.colour == _PALETTE and not found.palette:
        raise _Broken("it has no palette (PLTE)")
    found.start = pixels.start
    return found


def _take_pixels(pixels: _Pixels, body: Iterator[bytes], *, again: bool) -> None:
    if again:
        raise _Broken("its data chunks (IDAT) do not follow each other")
    for piece in body:
        pixels.feed(piece)


def _take_note(found: _Findings, kind: bytes, body: Iterator[bytes], *, early: bool) -> None:
    match kind:
        case b"acTL" if early:
            found.frames = int.from_bytes(next(body, b"")[:4], "big")
        case b"PLTE":
            found.palette = found.palette or early
        case b"tRNS":
            found.keyed = found.keyed or early
        case b"IEND":
            pass
        case _ if kind[:1].isupper():
            raise _Broken(f"it has a chunk {kind.decode()} that no reader knows")
        case _:
            pass


# --- results --------------------------------------------------------------------------------


def _checked_result(file: BinaryIO, max_megapixels: float) -> _Header:
    file.seek(0)
    if (head := _read(file, len(_PNG))) != _PNG:
        raise BrokenResult(f"the result is no PNG: it begins with {head!r}")
    header, chunks = _open_png(file)
    pixels = header.width * header.height
    if pixels > max_megapixels * 1e6:
        raise BrokenResult(
            f"the result has {pixels / 1e6:.1f} megapixels ({header.width} x {header.height}),"
            f" at most {max_megapixels:g} are taken"
        )
    found = _read_png(header, chunks)
    if not (header.colour in _WITH_ALPHA or found.keyed):
        raise BrokenResult("the result has no transparency: the PNG has no alpha channel")
    if _may_be_opaque(header, found) and _lowest_alpha(file) == 255:  # noqa: PLR2004 - opaque
        raise BrokenResult("the result has no transparency: every pixel is opaque")
    return header


def _may_be_opaque(header: _Header, found: _Findings) -> bool:
    """Look at the first pixel, which every filter stores as it is.

    It is nearly always transparent in a cut-out, and then nothing needs to be decoded.
    """
    if header.colour not in _WITH_ALPHA:
        # Pillow cannot compare a transparent colour of 16 bits: then its presence must do.
        return header.depth < 16  # noqa: PLR2004 - bits
    end = 1 + header.pixel_bits // 8
    alpha = found.start[end - header.depth // 8 : end]
    return alpha == b"\xff" * len(alpha)


def _lowest_alpha(file: BinaryIO) -> int:
    from PIL.PngImagePlugin import PngImageFile  # noqa: PLC0415 - slow, and rarely needed

    file.seek(0)
    with _decoding(), PngImageFile(file) as image:
        image.load()
        clear = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
        lowest, _ = clear.getchannel("A").getextrema()
        return int(lowest)  # type: ignore[arg-type]


# --- JPEG -----------------------------------------------------------------------------------

_SOS, _EOI = 0xDA, 0xD9
_MOST_SEGMENTS = 5_000
_MOST_SCANS = 64
_CHANNELS_OF_JPEG = (1, 3, 4)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_ODD_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)
_ASIDES = (*range(0xE0, 0xF0), 0xFE, 0xDC)
# In the data of a scan FF is followed by 00, by another FF or by a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(slots=True)
class _Markers:
    """Reads a JPEG forward, from marker to marker."""

    file: BinaryIO
    _buffer: bytes = b""
    _at: int = 0
    _loaded: int = 0
    _seen: int = 0

    @property
    def position(self) -> int:
        """Where in the file the next byte lies."""
        return self._loaded - len(self._buffer) + self._at

    def next(self) -> int:
        """Return the next marker, over whatever lies before it."""
        self._seen += 1
        if self._seen > _MOST_SEGMENTS:
            raise _Broken(f"it has more than {_MOST_SEGMENTS} segments")
        while (found := _MARKER.search(self._buffer, self._at)) is None:
            # The last byte may be the FF of a marker.
            self._at = max(self._at, len(self._buffer) - 1)
            self._more()
        self._at = found.end()
        return self._buffer[self._at - 1]

    def segment(self) -> bytes:
        """Return what belongs to the marker, without its two bytes of length."""
        length = int.from_bytes(self._take(2), "big")
        if length < 2:  # noqa: PLR2004 - the length counts itself
            raise _Broken(f"it has a segment of {length} bytes")
        return self._take(length - 2)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) - self._at < count:
            self._more()
        self._at += count
        return self._buffer[self._at - count : self._at]

    def _more(self) -> None:
        piece = self.file.read(_PIECE)
        if not piece:
            raise _Broken("it ends without an end marker", cut_off=True)
        self._loaded += len(piece)
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0


def _check_jpeg(file: BinaryIO, _size: int, max_pixels: int) -> tuple[int, int]:
    file.seek(2)
    markers = _Markers(file, _loaded=2)
    width, height, tables = _read_tables(markers, max_pixels)
    start = markers.position - 2
    _read_scans(markers)
    _decode_jpeg(file, tables, start, markers.position)
    return width, height


def _read_tables(markers: _Markers, max_pixels: int) -> tuple[int, int, bytes]:
    """Read up to the first scan.

    Returns:
        Width, height, and what a decoder needs of all this: no metadata, which may be hostile,
        and no pointers to further pictures.
    """
    width = height = 0
    kept = [b"\xff\xd8"]
    while (marker := markers.next()) != _SOS:
        _expect(marker, (*_FRAMES, *_ODD_FRAMES, *_TABLES, *_ASIDES))
        body = markers.segment()
        if marker in (*_FRAMES, *_ODD_FRAMES):
            width, height = _frame_size(marker, body)
            _refuse_many(width, height, max_pixels)
        if marker not in _ASIDES:
            kept += [bytes((0xFF, marker)), (len(body) + 2).to_bytes(2, "big"), body]
    if not width:
        raise _Broken("it has no frame header")
    return width, height, b"".join(kept)


def _expect(marker: int, markers: tuple[int, ...]) -> None:
    if marker not in markers:
        raise _Broken(f"there is a marker {marker:02X} where none should be")


def _frame_size(marker: int, body: bytes) -> tuple[int, int]:
    if len(body) < 6:  # noqa: PLR2004 - bits, height, width, channels
        raise _Broken("its frame header is too short")
    bits, channels = body[0], body[5]
    width, height = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    if not all((bits, channels, width, height)):
        raise _Broken(f"its header asks for {width} x {height} pixels of {channels} x {bits} bits")
    if marker in _ODD_FRAMES or bits != 8 or channels not in _CHANNELS_OF_JPEG:  # noqa: PLR2004
        raise UnsupportedFormat(
            f"the file is a JPEG of a rare kind (SOF{marker - 0xC0}, {bits} bits,"
            f" {channels} channels); save it as an ordinary JPEG"
        )
    return width, height


def _read_scans(markers: _Markers) -> None:
    """Read from the first scan up to behind the end marker; what follows is another's."""
    scans, marker = 0, _SOS
    while marker != _EOI:
        _expect(marker, (_SOS, *_TABLES, *_ASIDES))
        markers.segment()
        scans += marker == _SOS
        if scans > _MOST_SCANS:
            raise _Broken(f"it has more than {_MOST_SCANS} scans")
        marker = markers.next()


def _decode_jpeg(file: BinaryIO, tables: bytes, start: int, end: int) -> None:
    from PIL.JpegImagePlugin import JpegImageFile  # noqa: PLC0415 - slow, most commands need none

    with _decoding(), JpegImageFile(_joined(tables, file, start, end)) as image:
        # All the data are read, one pixel in 64 is computed.
        image.draft(None, (1, 1))
        image.load()


def _joined(tables: bytes, file: BinaryIO, start: int, end: int) -> io.BytesIO:
    joined = io.BytesIO()
    joined.write(tables)
    file.seek(start)
    while piece := file.read(min(_PIECE, end - file.tell())):
        joined.write(piece)
    joined.seek(0)
    return joined


# --- WebP -----------------------------------------------------------------------------------

_WEBP_HEAD = 30
_MOST_WEBP_CHUNKS = 1_000
_WEBP_ZEROS = 4096  # copiers do not write in smaller pieces
_FLAT = 16  # levels
# Pillow takes 16 bytes a pixel to decode a WebP, which may be made of a few kilobytes. Of larger
# ones only the structure is checked; the API refuses a damaged one, and that is not billed.
_MOST_WEBP_PIXELS = 30_000_000


def _check_webp(file: BinaryIO, size: int, max_pixels: int) -> tuple[int, int]:
    head = _read(file, _WEBP_HEAD)
    if len(head) < _WEBP_HEAD:
        raise _Broken("its header is not all there", cut_off=True)
    width, height = _webp_size(head)
    _refuse_many(width, height, max_pixels)
    end = _riff_end(head)
    if end > size:
        raise _Broken(f"it lacks {counted(end - size, 'byte')}", cut_off=True)
    hollow, zeros = _read_webp(file, end)
    unwritten = hollow == b"VP8L" or zeros > _blocks(width, height)
    if unwritten or (width * height <= _MOST_WEBP_PIXELS and _decodes_hollow(file, hollow)):
        raise _Broken("its data end in zero bytes", cut_off=True)
    return width, height


def _blocks(width: int, height: int) -> int:
    """Return how many blocks of 16 x 16 pixels a lossy WebP is made of.

    Measured over qualities, methods and colours: an even picture ends in at most 0.71 zero bytes a
    block. More of them than blocks were never written.
    """
    return -(-width // 16) * -(-height // 16)


def _riff_end(head: bytes) -> int:
    return 8 + int.from_bytes(head[4:8], "little")


def _webp_size(head: bytes) -> tuple[int, int]:
    def number(at: int, count: int) -> int:
        return int.from_bytes(head[at : at + count], "little")

    match head[12:16]:
        case b"VP8X":
            return 1 + number(24, 3), 1 + number(27, 3)
        case b"VP8L" if head[20] == 0x2F:  # noqa: PLR2004 - the signature of the lossless format
            return 1 + (number(21, 2) & 0x3FFF), 1 + (number(22, 3) >> 6 & 0x3FFF)
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    raise _Broken(f"it does not begin with a picture, but with {head[12:26]!r}")


def _read_webp(file: BinaryIO, end: int) -> tuple[bytes, int]:
    """Walk through the chunks.

    Returns:
        The kind of a chunk of pixels that ends in zero bytes only, if there is one, and how many
        there are.
    """
    frames, hollow, zeros, at = 0, b"", 0, 12
    for _ in range(_MOST_WEBP_CHUNKS):
        if at + 8 > end:
            return hollow, zeros
        file.seek(at)
        head = _read(file, 8)
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        frames += kind == b"ANMF"
        if frames > 1:
            raise Animated("the WebP is animated: it has more than one frame")
        pixels = kind in (b"VP8 ", b"VP8L", b"ANMF")
        if pixels and (count := _zeros_at_the_end(file, at + 8, length)) >= _WEBP_ZEROS:
            hollow, zeros = kind, count
        at += 8 + length + length % 2
    raise _Broken(f"it has more than {_MOST_WEBP_CHUNKS} chunks")


def _zeros_at_the_end(file: BinaryIO, start: int, length: int) -> int:
    end = start + length
    while length > 0:
        count = min(_PIECE, length)
        file.seek(start + length - count)
        written = len(_read(file, count).rstrip(b"\0"))
        if written:
            return end - (start + length - count + written)
        length -= count
    return end - start


def _decodes_hollow(file: BinaryIO, hollow: bytes) -> bool:
    """Decode, and tell whether the end was never written though it can be decoded.

    Zero bytes are valid lossy data, "nothing new here". They are right at the end of an even
    background, but not where the last row is uneven.
    """
    from PIL.WebPImagePlugin import WebPImageFile  # noqa: PLC0415 - slow, most commands need none

    file.seek(0)
    with _decoding(), WebPImageFile(file) as image:
        image.load()
        return bool(hollow) and not _ends_flat(image)


def _ends_flat(image: PIL.Image.Image) -> bool:
    last = image.crop((0, image.height - 1, image.width, image.height)).convert("RGB")
    return all(high - low <= _FLAT for low, high in _extrema(last))


def _extrema(image: PIL.Image.Image) -> list[tuple[int, int]]:
    return [band.getextrema() for band in image.split()]  # type: ignore[misc]


def _readable(head: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head)  # noqa: PLR2004 - ASCII
    return f'"{text}"'
