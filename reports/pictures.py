"""Pictures of a run as data URIs under a byte budget, so that a page stays one small file.

Paths come from stored tables: a path that leaves the run folder, or a file that is no small PNG, is no picture.
"""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

LARGEST_EDGE = 128
LARGEST_SOURCE = 4096


@dataclass
class Album:
    """Hands out pictures of one run folder until the first that the budget (bytes of data URI) lacks room for."""

    folder: Path
    budget: int
    spent: int = 0
    dropped: int = 0
    unreadable: int = 0
    _uris: dict[str, str | None] = field(default_factory=dict)

    def uris(self, *paths: str) -> list[str] | None:
        """The pictures at these paths, "" where there is none; None, and counted, when they no longer fit."""
        found = [self._uri(path) if isinstance(path, str) and path else "" for path in paths]
        cost = sum(map(len, found))
        if self.dropped or self.spent + cost > self.budget:
            self.dropped += 1
            return None
        self.spent += cost
        return found

    def _uri(self, path: str) -> str:
        if path not in self._uris:
            self._uris[path] = thumbnail(self.folder, path)
            self.unreadable += self._uris[path] is None
        return self._uris[path] or ""


def thumbnail(folder: Path, path: str) -> str | None:
    """A PNG inside the folder as a WebP data URI of at most 128 pixels a side; None when it is not one."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SOURCE:
                return None
            return _webp(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


def _webp(image: Image.Image) -> str:
    if max(image.size) > LARGEST_EDGE:
        image.thumbnail((LARGEST_EDGE, LARGEST_EDGE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
