"""Streams that are small until they are unpacked, made without packing all of it."""

import struct
import zlib

_PIECE = 1 << 22


def deflated(byte: bytes, count: int) -> bytes:
    """Return `count` times the same byte, deflated (RFC 1951)."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    # A full flush forgets what came before, so that the same piece becomes the same bytes again.
    piece = packer.compress(byte * _PIECE) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (count // _PIECE) + packer.compress(byte * (count % _PIECE)) + packer.flush()


def zlib_of_zeros(count: int) -> bytes:
    """Return `count` zeros as a whole zlib stream (RFC 1950)."""
    checksum = count % 65521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + deflated(b"\0", count) + struct.pack(">I", checksum)


def gzip_of_spaces(count: int) -> bytes:
    """Return `count` spaces as gzip (RFC 1952) without its end, which nobody is to reach."""
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + deflated(b" ", count)
