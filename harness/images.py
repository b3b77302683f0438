"""From image files to (H, W, 3) sRGB uint8 arrays, and back to PNG.

Reading is Pillow's, restricted to `FORMATS` and to `MAX_PIXELS`; these rules make any file 8-bit RGB:
- 16-bit grey v becomes v/257, rounded; 16-bit colour keeps its high byte (Pillow reads no more), at most one level off.
- 32-bit integer and float images are refused: nothing says which value is white.
- Grey is repeated in three channels; palettes and CMYK are converted; embedded colour profiles are ignored.
- Transparency is composited over white.
- The EXIF orientation is applied; an unreadable EXIF block counts as "upright".
- Of an animation or a multi-page file, the first frame is used.
"""

import io
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import ImageError, one_line

if TYPE_CHECKING:
    from PIL import Image

Uint8 = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 64_000_000
MAX_BYTES = 512 * 2**20

_one_decode = threading.Lock()  # Python's warning filters, silenced while decoding, belong to the whole process


def decode(data: bytes, *, name: str) -> Uint8:
    """The image in the file contents `data` as a writable (H, W, 3) sRGB array; `name` is for the error message.

    Raises:
        ImageError: Not an image of one of `FORMATS`, damaged, truncated, empty, or larger than `MAX_PIXELS`.
    """
    where = one_line(name, 160)
    if not data:
        raise ImageError(f"{where}: the file is empty; replace or remove it")
    with _one_decode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _open(data, where) as picture:
                picture.load()
                return _rgb(_upright(picture), where)
        except ImageError:
            raise
        except Exception as error:  # Pillow's readers raise any type on damaged files
            reason = one_line(str(error), 100) or type(error).__name__
            raise ImageError(f"{where}: damaged or truncated image ({reason}); replace or remove it") from error


def read(path: Path) -> bytes:
    """The contents of an image file of at most `MAX_BYTES`.

    Raises:
        ImageError: Missing, not a regular file, unreadable or too large.
    """
    where = one_line(str(path), 160)
    try:
        if not path.is_file():
            raise ImageError(f"{where}: no such file; check the path")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{where}: larger than {MAX_BYTES >> 20} MiB; shrink or remove it")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{where}: cannot be read ({error.strerror}); check the file and its permissions") from error


def load(path: Path) -> Uint8:
    """The image file at `path` as (H, W, 3) sRGB; raises ImageError as `read` and `decode` do."""
    return decode(read(path), name=str(path))


def encode_png(image: Uint8) -> bytes:
    """An (H, W, 3) image as PNG: lossless, at the fast compression level."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def centre_square(image: Uint8) -> Uint8:
    """The largest centred square of an (H, W, C) image; a view. An odd pixel too many is cut at the far side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _open(data: bytes, where: str) -> "Image.Image":
    """Read the header only, and refuse what must not be decoded."""
    from PIL import Image, UnidentifiedImageError

    too_large = f"of more than {MAX_PIXELS // 10**6} megapixels; shrink or remove it"
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{where}: claims a size {too_large}") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(f"{where}: not a readable image ({known}); convert or remove it") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{where}: {width} x {height} is a size {too_large}")
    return picture


def _upright(picture: "Image.Image") -> "Image.Image":
    """Turn the picture as its EXIF orientation says."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - a broken EXIF block raises any type, and the pixels are good without it
        return picture


def _rgb(picture: "Image.Image", where: str) -> Uint8:
    """Any loaded picture as an (H, W, 3) array, by the rules in the module docstring."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode in {"I", "F"}:
        raise ImageError(f"{where}: 32-bit values of unknown range; convert it to 8 or 16 bit")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))
