"""Pictures of a run as data URIs under a byte budget, so that a page stays one small file.

Paths come from stored tables: a path that leaves the run folder, or a file that is no PNG or a huge one, is no picture.
"""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from harness.images import MAX_PIXELS

LARGEST_EDGE = 128


@dataclass
class Album:
    """Hands out pictures of one run folder until the first that the budget (bytes of data URI) lacks room for.

    Pictures that belong together show the same detail: the centre, as much of it as fits the largest of them.
    """

    folder: Path
    budget: int
    spent: int = 0
    dropped: int = 0
    unreadable: int = 0
    details: int = 0
    _uris: dict[tuple[str, float], str | None] = field(default_factory=dict)

    def uris(self, *paths: str) -> list[str] | None:
        """The pictures at these paths, "" where there is none; None, and counted, when they no longer fit."""
        here = [path if isinstance(path, str) else "" for path in paths]
        part = min(1.0, LARGEST_EDGE / max(longest_side(self.folder, path) for path in here))
        found = [self._uri(path, part) if path else "" for path in here]
        cost = sum(map(len, found))
        if self.dropped or self.spent + cost > self.budget:
            self.dropped += 1
            return None
        self.spent += cost
        self.details += part < 1
        return found

    def _uri(self, path: str, part: float) -> str:
        if (path, part) not in self._uris:
            self._uris[path, part] = thumbnail(self.folder, path, part)
            self.unreadable += self._uris[path, part] is None
        return self._uris[path, part] or ""


def longest_side(folder: Path, path: str) -> int:
    """The longest side in pixels of a PNG inside the folder; 1 when it is not one."""
    with _opened(folder, path) as image:
        return max(image.size) if image else 1


def thumbnail(folder: Path, path: str, part: float) -> str | None:
    """The central `part` (0 to 1) of a PNG inside the folder as a WebP data URI of at most 128 pixels a side.

    None when it is not one.
    """
    with _opened(folder, path) as image:
        try:
            return _webp(image.convert("RGB"), part) if image else None
        except (OSError, ValueError, SyntaxError):
            return None


@contextmanager
def _opened(folder: Path, path: str) -> Iterator[Image.Image | None]:
    """A PNG inside the folder, its pixels not read yet; None when it is not one."""
    file = (folder / path).resolve()
    try:
        inside = file.is_relative_to(folder.resolve()) and file.is_file()
        image = Image.open(file, formats=["PNG"]) if inside else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        image = None
    with image or nullcontext():
        yield image if image and image.width * image.height <= MAX_PIXELS else None


def _webp(image: Image.Image, part: float) -> str:
    width, height = (max(1, round(side * part)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    detail = image.crop((left, top, left + width, top + height))
    if max(detail.size) > LARGEST_EDGE:
        detail.thumbnail((LARGEST_EDGE, LARGEST_EDGE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    detail.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
