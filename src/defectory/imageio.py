"""Load and save images and masks: every conversion is reported, every failure is one line."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from defectory.errors import ImageError
from defectory.files import write_bytes
from defectory.imagefile import MAX_PIXELS as MAX_PIXELS
from defectory.imagefile import Decoded, decode, file_state, read_header
from defectory.imagefile import looks_like_image as looks_like_image
from defectory.terminal import printable
from defectory.tiff import encode_tiff
from defectory.valuerange import (
    LEAST_COUNTS,
    Levels,
    is_meant_for,
    levels_of,
    own_range,
    set_range,
    shown,
    to_eight_bit,
)
from defectory.valuerange import ValueRange as ValueRange

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
SOFTWARE = "defectory"
"""Software name in the metadata of pictures for people, so that a folder of ours can be recognised."""
DARK_LEVEL = 16
"""An image whose values stay below this 8-bit level is named in a remark."""
_BAND_ROWS = 256
_PLAIN_STEPS = {"P": "palette to RGB", "L": "grey to RGB", "1": "black and white to RGB"}
_OVER_BLACK, _TRANSPARENT = "alpha over black", "wholly transparent: alpha dropped"
_COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3}


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An RGB image uint8 [H,W,3] and a description of how it was converted.

    `remarks` are the parts of `conversion` that the user should know: everything except plain changes of mode and the
    data set's own range.
    """

    rgb: NDArray[np.uint8]
    conversion: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameImage:
    """An image with its original values, and how to write another one of the same kind.

    `pixels` is [H,W], or [H,W,C] with grey and alpha, RGB, or RGBA; `value_range` is None for 8 bits.
    """

    pixels: NDArray[Any]
    value_range: ValueRange | None
    container: Literal["PNG", "TIFF"]
    big_endian: bool = False
    white_is_zero: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Return the suffix of files of this kind: `.png`, or `.tif` for TIFF files and types that PNG cannot store."""
        return ".png" if self.container == "PNG" else ".tif"

    def rgb(self, pixels: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Return the image, or pixels of its kind, as RGB uint8 [H,W,3] for viewing, without alpha."""
        values = self.pixels if pixels is None else pixels
        colours = values if values.ndim == 2 else values[..., : 1 if values.shape[2] == 2 else 3]
        levels = colours if self.value_range is None else to_eight_bit(colours, self.value_range)
        return _three_channels(levels.astype(np.uint8))

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """Encode other pixels of the same shape and type as a file of this kind."""
        if self.container == "PNG":
            return encode_png(pixels)
        return encode_tiff(pixels, big_endian=self.big_endian, white_is_zero=self.white_is_zero)

    def save(self, path: Path, pixels: NDArray[Any]) -> None:
        """Write other pixels of the same shape and type to a file of this kind, atomically."""
        write_bytes(path, self.encode(pixels))


def load_image(path: Path, value_range: ValueRange | None = None) -> LoadedImage:
    """Load an image file as RGB and report how it was converted.

    EXIF orientation is applied, and only the first page is read. Grey is repeated to three channels and palettes are
    resolved; alpha is composited over black, or dropped if the whole image is transparent.

    Values of more than 8 bits are scaled linearly from a range to 0..255, rounded and clipped; NaN and infinities
    become black. 8-bit images are never scaled.

    Args:
        path: image file.
        value_range: range of the data set. If it is None, or in other units than the image, black is 0 and white the
            largest value of the bit depth that fits the image's values (1, 255, 1023, 4095, 16383, 65535); with
            negative values, the image's own range is used.

    Raises:
        ImageError: the file is missing, unreadable, empty, truncated, too large or not an image.
    """
    decoded = _remembered(path, decode(path))
    if decoded.values is not None:
        rgb, remarks, plain = _deep_to_rgb(decoded, value_range)
    else:
        assert decoded.image is not None
        rgb, remarks, plain = _eight_bit_to_rgb(path, decoded.image)
    remarks = (*decoded.remarks, *remarks)
    return LoadedImage(rgb=rgb, conversion=", ".join([*remarks, *plain]) or "none", remarks=remarks)


def load_rgb(path: Path, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Load an image file as RGB uint8 [H,W,3]; conversions as in `load_image`.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_image(path, value_range).rgb


def load_native(path: Path) -> NDArray[Any]:
    """Load an image file with its original values and number type, upright: [H,W], or [H,W,C] with C of 2 to 4.

    Channels are grey, grey and alpha, RGB, or RGBA. Other kinds of image (palettes, black and white, CMYK) are
    converted to RGB as by `load_rgb`.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_frame(path, convert=True).pixels


def load_frame(path: Path, value_range: ValueRange | None = None, *, convert: bool = False) -> FrameImage:
    """Load an image to be edited in places and written again with its own depth and range.

    Args:
        path: image file.
        value_range: range of the data set; used if the image has more than 8 bits and its values are in these units.
        convert: convert kinds that cannot be written again to 8-bit RGB instead of refusing them.

    Raises:
        ImageError: as for `load_image`, or a kind that cannot be written again: a palette, black and white, CMYK.
    """
    decoded = _remembered(path, decode(path))
    header, remarks = decoded.header, list(decoded.remarks)
    container: Literal["PNG", "TIFF"] = "TIFF" if header.kind == "TIFF" else "PNG"
    if decoded.values is not None:
        chosen, told = _chosen_range(decoded, value_range)
        return FrameImage(
            pixels=decoded.values,
            value_range=chosen,
            container=container,
            big_endian=header.big_endian,
            white_is_zero=header.white_is_zero,
            remarks=(*remarks, *told),
        )
    image = decoded.image
    assert image is not None
    if image.mode in _COLOURS:
        return FrameImage(
            pixels=np.asarray(image).copy(),
            value_range=None,
            container=container,
            big_endian=header.big_endian,
            remarks=tuple(remarks),
        )
    if not convert:
        kind = {"P": "a palette image", "PA": "a palette image", "1": "a black-and-white image"}.get(
            image.mode, f"a {image.mode} image"
        )
        raise ImageError(
            path, f"{kind}: defects cannot be drawn into it without changing its kind", "save it as grey or RGB first"
        )
    rgb, told, _ = _eight_bit_to_rgb(path, image)
    return FrameImage(pixels=rgb, value_range=None, container="PNG", remarks=(*remarks, *told))


def image_size_hw(path: Path) -> tuple[int, int]:
    """Return height and width of an image file after EXIF rotation; decode it completely to find damage.

    A file that was decoded before and has not changed since is not decoded again.

    Raises:
        ImageError: as for `load_image`.
    """
    return _facts(path).size_hw


def remarks_of(path: Path) -> tuple[str, ...]:
    """Return remarks on how an image file is read: EXIF rotation, further pages, transparency, other colour spaces.

    A file that was decoded before and has not changed since is not decoded again.

    Raises:
        ImageError: as for `load_image`.
    """
    return _facts(path).remarks


def measure_value_range(paths: Iterable[Path]) -> tuple[ValueRange | None, tuple[str, ...]]:
    """Return the black and white values of a set of images, and remarks; None if every image has 8 bits.

    Black is 0 and white the largest value of the bit depth that fits all values, 4095 for 12 bits in 16-bit files. If
    the values fill less than a third of that, black and white are approximately the smallest and the largest value. At
    most .01% of an image's pixels are clipped on either side. One image is in memory at a time; 8-bit images are
    opened, not decoded.

    Raises:
        ImageError: as for `load_image`.
    """
    deep: list[tuple[str, Levels]] = []
    num_eight_bit = 0
    for path in paths:
        # files decoded before are known without opening them
        known = _facts(path) if _is_remembered(path) or read_header(path).is_deep else None
        if known is None or known.levels is None:
            num_eight_bit += 1
        else:
            deep.append((path.name, known.levels))
    if not deep:
        return None, ()
    counts = [levels for _, levels in deep if not levels.is_fraction]
    chosen = set_range(
        counts if counts and max(i.high for i in counts) > LEAST_COUNTS else [levels for _, levels in deep]
    )
    return chosen, tuple(_remarks_on_range(chosen, deep, num_eight_bit))


def load_class_mask(path: Path) -> NDArray[np.uint8]:
    """Load an 8-bit class-index mask uint8 [H,W]; palette PNGs return their indices.

    Raises:
        ImageError: not an 8-bit single-channel image, or unreadable.
    """
    decoded = decode(path)
    mode = decoded.header.mode if decoded.image is None else decoded.image.mode
    if decoded.image is None or mode not in ("L", "P", "1"):
        depth = f" of {decoded.header.bits} bit" if decoded.image is None else ""
        raise ImageError(
            path,
            f"mask has mode {mode}{depth}",
            "save masks as 8-bit PNG with one channel: 0 background, value = class index",
        )
    return np.asarray(decoded.image).astype(np.uint8)


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16], *, compress_level: int = 3) -> bytes:
    """Encode grey [H,W], or grey and alpha, RGB or RGBA [H,W,C], of uint8 or uint16 as PNG.

    The same pixels always give the same bytes.
    """
    if image.ndim == 3 and image.dtype == np.uint16:
        return _encode_deep_png(image.astype(np.uint16, copy=False), compress_level)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def save_png(
    path: Path, image: NDArray[np.uint8] | NDArray[np.uint16], *, software: bool = False, durable: bool | None = None
) -> None:
    """Write an image that `encode_png` accepts to a PNG file atomically.

    Args:
        path: the file.
        image: pixels.
        software: mark the file as ours in its metadata, for pictures in a user's folder.
        durable: wait until the file is on disk; None means yes, except in an unfinished folder.
    """
    data = encode_png(image)
    if software:
        buffer, text = io.BytesIO(), PngInfo()
        text.add_text("Software", SOFTWARE)
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=3, pnginfo=text)
        data = buffer.getvalue()
    write_bytes(path, data, durable=durable)


def save_jpeg(
    path: Path, image: NDArray[np.uint8], *, quality: int = 85, software: bool = False, durable: bool | None = None
) -> None:
    """Write RGB uint8 [H,W,3] to a JPEG file atomically; for contact sheets, never for data.

    Arguments are as for `save_png`.
    """
    buffer = io.BytesIO()
    comment: dict[str, Any] = {"comment": f"Software: {SOFTWARE}"} if software else {}
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, **comment)
    write_bytes(path, buffer.getvalue(), durable=durable)


@dataclass(frozen=True, kw_only=True)
class _Facts:
    size_hw: tuple[int, int]
    levels: Levels | None
    """None for 8 bits."""
    remarks: tuple[str, ...]


_MAX_REMEMBERED, _SETTLED_S = 50_000, 0.5
_remembered_facts: dict[tuple[str, int, int, int, int], _Facts] = {}


def _key(path: Path) -> tuple[tuple[str, int, int, int, int], bool]:
    """Return the cache key of a file's facts, and whether it is old enough for a change to show in its times."""
    state = file_state(path)
    settled = time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED_S
    return (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns), settled


def _is_remembered(path: Path) -> bool:
    return _key(path)[0] in _remembered_facts


def _facts(path: Path) -> _Facts:
    known = _remembered_facts.get(_key(path)[0])
    return known if known is not None else _remember(path, decode(path))


def _remembered(path: Path, decoded: Decoded) -> Decoded:
    if not _is_remembered(path) and decoded.values is None:
        _remember(path, decoded)
    return decoded


def _remember(path: Path, decoded: Decoded) -> _Facts:
    levels, remarks = None, list(decoded.remarks)
    if decoded.values is not None:
        levels = levels_of(_colours(decoded))
        remarks += _remarks_on_missing(levels)
    elif decoded.image is not None:
        remarks += _remarks_on_colours(decoded.image)
    facts = _Facts(size_hw=decoded.size_hw, levels=levels, remarks=tuple(remarks))
    key, settled = _key(path)
    if settled:
        if len(_remembered_facts) >= _MAX_REMEMBERED:
            _remembered_facts.pop(next(iter(_remembered_facts)))
        _remembered_facts[key] = facts
    return facts


def _colours(decoded: Decoded) -> NDArray[Any]:
    assert decoded.values is not None
    return decoded.values if decoded.values.ndim == 2 else decoded.values[..., : _COLOURS[decoded.header.mode]]


def _chosen_range(decoded: Decoded, value_range: ValueRange | None) -> tuple[ValueRange, list[str]]:
    """Return the range for reading a deep image, and remarks.

    The range is the data set's, or the image's own if there is none or its units differ.
    """
    levels = levels_of(_colours(decoded))
    told = _remarks_on_missing(levels)
    if value_range is not None and is_meant_for(value_range, levels):
        return value_range, told
    own = own_range(levels)
    if value_range is None:
        told.append(f"{levels.words} values read as {own.words}")
    else:
        told.append(
            f"{levels.words} values do not match the data set's range ({value_range.words}): read as {own.words}"
        )
    return own, told


def _deep_to_rgb(
    decoded: Decoded, value_range: ValueRange | None
) -> tuple[NDArray[np.uint8], tuple[str, ...], list[str]]:
    chosen, remarks = _chosen_range(decoded, value_range)
    header, colours, values = decoded.header, _colours(decoded), decoded.values
    assert values is not None
    kind = "float" if header.sample == "float" else f"{header.bits} bit"
    plain = [f"{kind} to 8 bit with {chosen.words}"]
    levels = _three_channels(to_eight_bit(colours, chosen))
    if header.mode in ("LA", "RGBA"):
        alpha = values[..., -1].astype(np.float64)
        # an alpha channel may have fewer bits than its number type, as colours may
        opaque = (1.0, chosen.high) if header.sample == "float" else (chosen.high, float(np.iinfo(values.dtype).max))
        full = next((value for value in opaque if value >= alpha.max()), float(alpha.max()))
        if not alpha.any():
            remarks.append(_TRANSPARENT)
        elif alpha.min() < full:
            remarks.append(_OVER_BLACK)
            levels = np.round(levels * np.clip(alpha / full, 0, 1)[..., None]).astype(np.uint8)
    if colours.ndim == 2 or colours.shape[2] == 1:
        plain.append("grey to RGB")
    return levels, tuple(remarks), plain


def _three_channels(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = levels[..., None] if levels.ndim == 2 else levels
    return np.ascontiguousarray(np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey)


def _pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image uint8 [H,W,3], copied in bands: Pillow would make three copies."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND_ROWS):
        pixels[top : top + _BAND_ROWS] = np.asarray(
            image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))
        )
    return pixels


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info)


def _eight_bit_to_rgb(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...], list[str]]:
    remarks = _remarks_on_colours(image)
    plain = [_PLAIN_STEPS[image.mode]] if image.mode in _PLAIN_STEPS else []
    try:
        if not _has_alpha(image):
            return _pixels_of(image if image.mode == "RGB" else image.convert("RGB")), remarks, plain
        rgba = np.asarray(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA"))
    except (ValueError, KeyError):
        raise ImageError(
            path, f"has the colour mode {image.mode}, which is not supported", "save it as grey or RGB"
        ) from None
    if not rgba[..., 3].any():
        return rgba[..., :3].copy(), remarks, plain
    whole = Image.fromarray(rgba)
    black = Image.new("RGBA", whole.size, (0, 0, 0, 255))
    return (
        np.asarray(Image.alpha_composite(black, whole).convert("RGB")).copy(),
        remarks,
        [*plain, *([] if remarks else ["opaque alpha dropped"])],
    )


def _remarks_on_colours(image: Image.Image) -> tuple[str, ...]:
    if _has_alpha(image):
        alpha = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A"))
        return () if alpha.min() == 255 else (_OVER_BLACK,) if alpha.any() else (_TRANSPARENT,)
    return () if image.mode in (*_PLAIN_STEPS, "RGB") else (f"{image.mode} to RGB",)


def _remarks_on_missing(levels: Levels) -> list[str]:
    count = levels.num_missing
    return (
        [f"{count} value{'s are not numbers and' if count > 1 else ' is not a number and'} read as black"]
        if count
        else []
    )


def _remarks_on_range(chosen: ValueRange, deep: list[tuple[str, Levels]], num_eight_bit: int) -> list[str]:
    """Return remarks on the values of a set's deep images, how they are read, and which images look different."""
    meant = [(name, levels) for name, levels in deep if is_meant_for(chosen, levels)]
    kinds = " and ".join(sorted({levels.words for _, levels in deep}))
    least, most = (
        min((i.minimum for _, i in meant), default=chosen.low),
        max((i.maximum for _, i in meant), default=chosen.high),
    )
    told = [f"{kinds} images hold values {shown(least)} to {shown(most)}; read as {chosen.words}"]
    others = [name for name, levels in deep if not is_meant_for(chosen, levels)]
    if others:
        told.append(
            f"{_named(others)} outside that range and read with {'its own' if len(others) == 1 else 'their own'}"
        )
    dark = [name for name, levels in meant if levels.maximum < chosen.low + DARK_LEVEL * chosen.per_level]
    if dark:
        told.append(f"{_named(dark)} darker than level {DARK_LEVEL} of 255 everywhere")
    if num_eight_bit:
        told.append(
            f"{num_eight_bit} images have 8 bits and are not scaled, {len(deep)} have more; they may differ in "
            "brightness"
        )
    return told


def _named(names: list[str]) -> str:
    first = printable(names[0])
    return f"{first} is" if len(names) == 1 else f"{len(names)} images (first {first}) are"


def _encode_deep_png(image: NDArray[np.uint16], compress_level: int) -> bytes:
    """Encode 16-bit grey and alpha, RGB or RGBA, which Pillow cannot write.

    Every pixel is stored as the difference to the pixel before it in its row.
    """
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image, dtype=">u2").view(np.uint8).reshape(height, width, channels * 2)
    # filter 1 (sub): bytes are modulo 256
    filtered = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1).reshape(height, -1)
    data = np.concatenate([np.ones((height, 1), np.uint8), filtered], axis=1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data, compress_level)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
