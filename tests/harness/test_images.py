"""Decoding: every kind of file becomes 8-bit RGB by the stated rules, or one line that says why not."""

import contextlib
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness import images
from harness.errors import ImageError

Uint8 = NDArray[np.uint8]


def picture(height: int = 12, width: int = 16) -> Uint8:
    """A smooth colour image that survives JPEG well."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 10, y * 15, np.full_like(x, 90)], axis=2).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The file contents of a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its valid checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """An 8-bit grey PNG whose header claims a size and whose data hold a single byte."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def refusal(data: bytes, name: str = "photo.jpg") -> str:
    """The message with which `data` is refused; checked to be one bounded line that names the file."""
    with pytest.raises(ImageError) as caught:
        images.decode(data, name=name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert message.startswith(name[:100])
    return message


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_keep_every_value(file_format: str) -> None:
    """A lossless RGB file decodes to exactly the values that were written."""
    options = {"lossless": True} if file_format == "WEBP" else {}
    flat = np.full((5, 7, 3), (200, 30, 77), np.uint8)
    decoded = images.decode(encoded(Image.fromarray(flat), file_format, **options), name="x")
    assert np.array_equal(decoded, flat)


def test_jpeg_decodes_to_writable_rgb() -> None:
    """A JPEG gives a writable (H, W, 3) uint8 array near the original."""
    decoded = images.decode(encoded(Image.fromarray(picture()), "JPEG", quality=95), name="x")
    assert decoded.shape == (12, 16, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert np.abs(decoded.astype(int) - picture()).mean() < 4


def test_one_pixel() -> None:
    """An image of one pixel is an image."""
    assert images.decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), name="x").tolist() == [[[1, 2, 3]]]


def test_grey_is_repeated_in_three_channels() -> None:
    """An 8-bit grey value appears in all three channels."""
    decoded = images.decode(encoded(Image.new("L", (3, 2), 77), "PNG"), name="x")
    assert decoded.shape == (2, 3, 3)
    assert np.unique(decoded).tolist() == [77]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_257_and_rounded(file_format: str) -> None:
    """Each of the 65,536 grey levels becomes the nearest integer to v / 257."""
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = images.decode(encoded(Image.fromarray(levels), file_format), name="x")
    assert np.array_equal(decoded[:, :, 1], np.rint(levels / 257))


def test_16_bit_colour_is_within_one_level() -> None:
    """A 16-bit colour PNG comes out within one 8-bit level of v / 257."""
    levels = np.linspace(0, 65535, 300).astype(np.uint16).reshape(10, 10, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(images.decode(data, name="x") - levels / 257).max() <= 1


def test_float_images_are_refused() -> None:
    """A 32-bit float TIFF has no known white, so it is refused with what to do."""
    assert "convert it to 8 or 16 bit" in refusal(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_cmyk_jpeg_is_converted() -> None:
    """A CMYK JPEG of pure cyan comes out as RGB cyan."""
    decoded = images.decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), name="x")
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() < 8


def test_alpha_is_composited_over_white() -> None:
    """Transparent is white, half-transparent black is mid grey, opaque is kept."""
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [9, 8, 7, 255]]], np.uint8)
    decoded = images.decode(encoded(Image.fromarray(rgba), "PNG"), name="x")
    assert decoded.tolist() == [[[255] * 3, [127] * 3, [9, 8, 7]]]


def test_palette_with_transparency() -> None:
    """A palette image with a transparent entry is looked up, then composited over white, without a warning."""
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    decoded = images.decode(encoded(indexed, "PNG", transparency=b"\x00\xff"), name="x")
    assert decoded.tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """A file stored turned, with the EXIF orientation that says so, comes out upright."""
    upright = picture()
    across = upright.transpose(1, 0, 2)
    stored = {  # EXIF 2.3, tag 274: which side of the scene the first stored row and the first stored column are
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: across,  # left, top
        6: across[::-1],  # right, top
        7: across[::-1, ::-1],  # right, bottom
        8: across[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(images.decode(data, name="x"), upright)


def test_broken_exif_is_upright() -> None:
    """An unreadable EXIF block costs neither the image nor a warning."""
    data = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0this is no TIFF header")
    assert images.decode(data, name="x").shape == (12, 16, 3)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_several(file_format: str) -> None:
    """Of an animation or a multi-page file, the first frame is decoded."""
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert images.decode(data, name="x")[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(file_format: str, share: float) -> None:
    """A file cut anywhere is an ImageError: no traceback of another kind, no warning, no half image."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    assert "remove it" in refusal(data[: int(len(data) * share)])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_damaged_bytes_never_raise_anything_else(file_format: str) -> None:
    """Random damage in a file gives an image or an ImageError."""
    random = np.random.default_rng(1)
    data = np.frombuffer(encoded(Image.fromarray(picture(40, 40)), file_format), np.uint8)
    for _ in range(60):
        damaged = data.copy()
        damaged[random.integers(0, min(len(data), 400), 8)] = random.integers(0, 256, 8)
        with contextlib.suppress(ImageError):
            assert images.decode(damaged.tobytes(), name="x").shape[2] == 3


def test_empty_file() -> None:
    """No bytes at all are called empty."""
    assert "empty" in refusal(b"")


def test_text_is_not_an_image() -> None:
    """A text file with an image's name is called what it is: no image, with the formats that are read."""
    message = refusal(b"<html>404 not found</html>")
    assert "not a readable image" in message
    assert "WEBP" in message


def test_formats_outside_the_list_are_refused() -> None:
    """A format that Pillow can read but that is not on the list is refused."""
    assert "not a readable image" in refusal(encoded(Image.new("RGB", (4, 4)), "PPM"))


def test_absurd_sizes_are_refused_without_allocating() -> None:
    """A header that claims 20,000 x 20,000 or 9,000 x 9,000 pixels is refused before any pixel memory is taken."""
    tracemalloc.start()
    bomb, large = refusal(png(20_000, 20_000)), refusal(png(9_000, 9_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "64 megapixels" in bomb
    assert "9000 x 9000" in large
    assert peak < 2**22


def test_warning_sizes_do_not_leak_a_warning() -> None:
    """Between Pillow's warning size and its error size, the answer is still an ImageError."""
    assert "12000 x 12000" in refusal(png(12_000, 12_000))


def test_text_chunk_bomb_is_refused() -> None:
    """A small PNG whose text chunk would inflate to 100 MiB is refused."""
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(100 * 2**20), 9))
    assert "damaged" in refusal(png(1, 1, bomb))


def test_names_in_messages_are_bounded_and_printable() -> None:
    """A hostile file name can neither break the line nor fill the screen."""
    message = refusal(b"", name="a" * 100 + "\n\x1b[31m" + "b" * 5000)
    assert "\x1b" not in message


def test_load_reads_a_file_and_names_it_on_error(tmp_path: Path) -> None:
    """`load` decodes a file, and says which file is missing, a folder or broken."""
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    good.write_bytes(images.encode_png(picture()))
    broken.write_bytes(b"no")
    assert np.array_equal(images.load(good), picture())
    for path in (broken, tmp_path / "missing.png", tmp_path):
        with pytest.raises(ImageError, match=path.name):
            images.load(path)


def test_files_over_the_size_limit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file larger than MAX_BYTES is refused by its size alone."""
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        images.load(path)


def test_centre_square_keeps_the_middle() -> None:
    """The crop is the centred square of the shorter side, whichever side that is."""
    wide = picture(4, 9)
    assert np.array_equal(images.centre_square(wide), wide[:, 2:6])
    assert np.array_equal(images.centre_square(wide.transpose(1, 0, 2)), wide.transpose(1, 0, 2)[2:6])
