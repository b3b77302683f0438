"""Face identity: embeddings of real faces, of pictures without one, and the file that they depend on."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.datasets import limit, open_dataset
from harness.degrade import make_input, make_target
from harness.errors import ConfigError, WeightsError
from harness.fairness import faces, identity
from harness.resize import resize, to_uint8


def embedded(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The embeddings, or a skip where something that they need is absent."""
    try:
        return identity.embed(images)
    except (ConfigError, WeightsError) as error:
        pytest.skip(str(error))


def as_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo after coding as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return np.asarray(Image.open(buffer))


def test_renditions_of_a_face_are_nearer_than_other_faces(data_root: Path) -> None:
    """Of faces of 64 pixels, each is nearest to its own JPEG; a grey picture has no embedding."""
    dataset = limit(open_dataset(f"utkface:{data_root / 'utkface'}#validation"), 8)
    photos = np.stack([make_target(dataset.image(record), 64) for record in dataset.records])
    embeddings = embedded(np.stack([*photos, *map(as_jpeg, photos), np.full_like(photos[0], 128)]))
    assert embeddings.shape == (17, 128)
    assert embeddings.dtype == np.float32
    assert np.isnan(embeddings[-1]).all()
    png, jpeg = embeddings[:8], embeddings[8:16]
    found = np.isfinite(png).all(axis=1) & np.isfinite(jpeg).all(axis=1)
    assert found.sum() >= 6
    png, jpeg = png[found], jpeg[found]
    cosines = np.stack([identity.similarity(png, np.roll(jpeg, -shift, axis=0)) for shift in range(len(png))])
    assert (cosines.argmax(axis=0) == 0).all()
    assert cosines[0].min() > 0.95


def test_an_output_is_cut_where_its_target_has_the_face(data_root: Path) -> None:
    """Outputs too blurred for a face to be found have an embedding all the same, unlike the target's."""
    dataset = limit(open_dataset(f"utkface:{data_root / 'utkface'}#validation"), 3)
    photos = np.stack([make_target(dataset.image(record), 64) for record in dataset.records])
    blurred = to_uint8(resize(np.stack([make_input(photo, 4) for photo in photos]).astype(float), 64, 64))
    assert np.isnan(embedded(blurred)).all()
    cosines = identity.similarity(identity.embed(blurred, photos), identity.embed(photos))
    assert np.isfinite(cosines).all()
    assert cosines.max() < 0.95


def test_another_file_of_weights_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of dlib sees the pinned file alone: another one under its name is refused by its hash."""
    pytest.importorskip("dlib")
    (tmp_path / faces.LANDMARKS).write_bytes(b"not the pinned file")
    monkeypatch.setenv("HARNESS_WEIGHTS", str(tmp_path))
    faces._models.cache_clear()
    try:
        with pytest.raises(WeightsError, match="is not the pinned file"):
            identity.embed(np.zeros((1, 64, 64, 3), np.uint8))
    finally:
        faces._models.cache_clear()


def test_recipe_names_network_and_landmarks() -> None:
    """Embeddings are comparable under one recipe, which holds the hashes of both files."""
    try:
        recipe = identity.recipe()
    except (ConfigError, WeightsError) as error:
        pytest.skip(str(error))
    assert all(part in recipe for part in ("55533b28a958", "c4b1e9804792"))
