"""Streams that are small until they are unpacked, made without packing all of it."""

import struct
import zlib

_PIECE = 1 << 22


def deflated(byte: bytes, count: int, end: bytes = b"") -> bytes:
    """Return `count` times the same byte and what comes last, deflated (RFC 1951)."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    # A full flush forgets what came before, so that the same piece becomes the same bytes again.
    piece = packer.compress(byte * _PIECE) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(byte * (count % _PIECE) + end) + packer.flush()
    return piece * (count // _PIECE) + rest


def zlib_of_zeros(count: int) -> bytes:
    """Return `count` zeros as a whole zlib stream (RFC 1950)."""
    checksum = count % 65521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + deflated(b"\0", count) + struct.pack(">I", checksum)


def gzip_of_spaces(count: int, end: bytes = b"") -> bytes:
    """Return `count` spaces and what comes last as gzip (RFC 1952), without its checksum."""
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + deflated(b" ", count, end)
