"""Uncompressed TIFF files of any number type, grey or RGB, with or without alpha.

The same pixels always give the same bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHORT, _LONG = 3, 4
_SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def encode_tiff(pixels: NDArray[Any], *, big_endian: bool = False, white_is_zero: bool = False) -> bytes:
    """Encode integers or floats [H,W] or [H,W,C] (2: grey and alpha, 3: RGB, 4: RGBA) as TIFF.

    Args:
        pixels: any number type of 8 to 64 bits.
        big_endian: byte order of the file.
        white_is_zero: photometric interpretation to write, for grey.
    """
    order = ">" if big_endian else "<"
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(order)).tobytes()
    photometric = 2 if channels >= 3 else 0 if white_is_zero else 1
    bits, kind = pixels.dtype.itemsize * 8, _SAMPLE_FORMATS[pixels.dtype.kind]
    entries: list[tuple[int, int, tuple[int, ...]]] = [
        (256, _LONG, (width,)),
        (257, _LONG, (height,)),
        (258, _SHORT, (bits,) * channels),
        (259, _SHORT, (1,)),
        (262, _SHORT, (photometric,)),
        (273, _LONG, (8,)),
        (277, _SHORT, (channels,)),
        (278, _LONG, (height,)),
        (279, _LONG, (len(data),)),
        (284, _SHORT, (1,)),
        *([(338, _SHORT, (2,))] if channels in (2, 4) else []),
        (339, _SHORT, (kind,) * channels),
    ]
    data += b"\0" * (len(data) % 2)
    at = 8 + len(data)
    extra_at, table, extra = at + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind_of_number, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind_of_number == _SHORT else 'I'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed + b"\0" * (len(packed) % 2)
        table += struct.pack(f"{order}HHI", tag, kind_of_number, len(values)) + packed.ljust(4, b"\0")
    head = (b"MM" if big_endian else b"II") + struct.pack(f"{order}HI", 42, at)
    return b"".join([head, data, struct.pack(f"{order}H", len(entries)), table, struct.pack(f"{order}I", 0), extra])
