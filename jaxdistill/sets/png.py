"""PNG files of 8 and 16 bits a channel, grey or colour: what a distilled set needs of them, no more."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from jaxtyping import UInt

from jaxdistill.errors import ArtifactError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
# Colour types of PNG, by the number of channels.
_COLOURS = {1: 0, 3: 2}


def png_bytes(pixels: UInt[np.ndarray, "h w c"]) -> bytes:
    """The file of an image of type uint8 or uint16, with one channel or three.

    Example:
        >>> image = np.arange(12, dtype=np.uint16).reshape(2, 2, 3)
        >>> bool((png_pixels(png_bytes(image)) == image).all())
        True
    """
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    header = _HEADER.pack(width, height, bits, _COLOURS[channels], 0, 0, 0)
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    lines = np.pad(rows, ((0, 0), (1, 0)))  # the filter of each line: none
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def png_pixels(content: bytes, where: object = "the file") -> UInt[np.ndarray, "h w c"]:
    """The pixels of a file that :func:`png_bytes` made, (h, w, c), uint8 or uint16.

    Raises:
        ArtifactError: it is damaged, or was written by another program in a form that this one does not use.
    """
    try:
        if not content.startswith(_SIGNATURE):
            raise ValueError("no PNG")
        chunks = list(_chunks(content))
        width, height, bits, colour, *rest = _HEADER.unpack(chunks[0][1])
        channels = {kind: number for number, kind in _COLOURS.items()}[colour]
        if bits not in (8, 16) or any(rest):
            raise ValueError(f"{bits} bits, or interlaced")
        stride = width * channels * bits // 8 + 1
        stream = zlib.decompressobj()
        data = stream.decompress(b"".join(body for name, body in chunks if name == b"IDAT"), height * stride)
        lines = np.frombuffer(data, np.uint8).reshape(height, stride)
        if lines[:, 0].any():
            raise ValueError("filtered lines")
        kind = np.uint8 if bits == 8 else np.dtype(">u2")
        pixels = np.ascontiguousarray(lines[:, 1:]).view(kind).reshape(height, width, channels)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    except (ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise ArtifactError(
            f"{where} is not as jaxdistill writes it ({error}); export the set again"
        ) from None


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], len(_SIGNATURE)
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        name, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        if struct.unpack_from(">I", content, place + 8 + length)[0] != zlib.crc32(name + body):
            raise ValueError("a checksum that does not match")
        found.append((name, body))
        place += 12 + length
    return found
