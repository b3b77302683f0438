"""The project's checks and demonstrations; the Makefile prepares the environment and calls them.

All sessions run in the environment that nox is installed in (`.venv`), so that the large dependencies are installed
once and the checks need no network. Before the tests, and once, the weights of the metrics are fetched and the example
backends get environments of their own under `.nox`; where that fails, the tests that need them are skipped.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "protos", "wheel"]

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
PACKAGES = ("harness", "backends", "benchmarks", "reports", "protos")
PYTHON = (sys.executable, "-m")
BUF = str(Path(sysconfig.get_path("scripts")) / "buf")


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting."""
    session.run(*PYTHON, "ruff", "check")
    session.run(*PYTHON, "ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Static types, strict."""
    session.run(*PYTHON, "mypy")
    session.run(*PYTHON, "mypy", "noxfile.py", "protos/generate.py")


@nox.session
def protos(session: nox.Session) -> None:
    """The contract: style, compatibility, stubs (-- --write renews the stubs, --baseline the released contract)."""
    write = ["--write"] if "--write" in session.posargs else []
    session.run(BUF, "lint", "protos")
    if "--baseline" in session.posargs:
        session.run(BUF, "build", "protos", "--exclude-source-info", "--output", "protos/baseline.binpb")
    session.run(BUF, "breaking", "protos", "--against", "protos/baseline.binpb")
    session.run(*PYTHON, "protos.generate", *write)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on the source tree (-- takes pytest's arguments)."""
    _fetch_weights(session, ROOT, {})
    _prepare_examples(session)
    session.run(*PYTHON, "pytest", "-rs", *session.posargs)


@nox.session
def oracles(session: nox.Session) -> None:
    """The corruptions against imagecorruptions (400 MB), in an environment that shares the packages of this one."""
    folder, shared = ROOT / ".nox/oracles", {"PYTHONPATH": sysconfig.get_path("purelib")}
    python = str(folder / "bin/python")
    session.run(*PYTHON, "venv", "--without-pip", str(folder))
    pip = [*PYTHON, "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    session.run(*pip, "imagecorruptions-imaug==1.1.5", env=shared)
    session.run(python, "-c", "import imagecorruptions", env=shared)  # else its tests would be skipped
    session.run(python, "-m", "pytest", "-rs", "tests/harness/test_corruptions.py", *session.posargs, env=shared)


@nox.session
def wheel(session: nox.Session) -> None:
    """The tests on the built wheel, in a folder from which the source tree cannot be imported."""
    site, folder = _install_wheel(session), _copy_tests()
    data = os.environ.get("HARNESS_DATA", str(ROOT.parent / "shared" / "data"))
    env = {"PYTHONPATH": str(site), "HARNESS_DATA": str(Path(data).resolve()), "HARNESS_SOURCE": str(ROOT)}
    session.chdir(folder)
    _check_origin(session, site, env)
    session.run(*PYTHON, "harness", "--help", env=env, silent=True)
    _fetch_weights(session, folder, env)
    _prepare_examples(session)
    session.run(*PYTHON, "pytest", "-rs", *session.posargs, env=env)


@nox.session
def demo(session: nox.Session) -> None:
    """The quick suite, whose last line says where its report is (-- takes more options of `harness run`)."""
    session.run(*PYTHON, "harness", "run", "quick", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The project's own speed: start of the command line, and what the transport costs."""
    session.run(*PYTHON, "benchmarks.startup")
    session.run(*PYTHON, "benchmarks.transport")


def _install_wheel(session: nox.Session) -> Path:
    """Build the wheel from nothing and unpack it into a folder of its own."""
    shutil.rmtree(BUILD, ignore_errors=True)  # else the build packs what an earlier one left there
    site = BUILD / "site"
    session.run(*PYTHON, "build", "--wheel", "--no-isolation", "--outdir", str(BUILD / "dist"), silent=True)
    (built,) = (BUILD / "dist").glob("*.whl")
    session.run(*PYTHON, "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(built))
    return site


def _copy_tests() -> Path:
    folder = BUILD / "tests"
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _check_origin(session: nox.Session, site: Path, env: dict[str, str]) -> None:
    """Fail unless every package is imported from the wheel."""
    code = "import sys, importlib as i; [print(i.import_module(name).__file__) for name in sys.argv[1:]]"
    found = session.run(sys.executable, "-c", code, *PACKAGES, env=env, silent=True)
    wrong = [path for path in str(found).split() if not path.startswith(str(site))]
    if wrong:
        session.error(f"not imported from the wheel: {', '.join(wrong)}")


def _fetch_weights(session: nox.Session, folder: Path, env: dict[str, str]) -> None:
    _tried(session, "metric weights", [*PYTHON, "harness", "weights", "fetch"], folder, env)


def _prepare_examples(session: nox.Session) -> None:
    """Make the environments of the example backends, in which our packages are not."""
    python = ROOT / ".nox/example-python"
    pip = [*PYTHON, "pip", "--python", str(python / "bin/python"), "install", "--quiet", "--disable-pip-version-check"]
    venv = [*PYTHON, "venv", "--without-pip", str(python)]
    _prepare(session, python, ROOT / "docs/examples/python/requirements.txt", venv, [*pip, "-r", "requirements.txt"])
    npm = [shutil.which("npm") or "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    _prepare(session, ROOT / ".nox/example-node", ROOT / "docs/examples/node/package.json", npm)


def _prepare(session: nox.Session, folder: Path, needs: Path, *commands: list[str]) -> None:
    """Run the commands that install in `folder` what the file `needs` lists, unless they have."""
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_bytes() == needs.read_bytes():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(needs, folder)
    if all(_tried(session, folder.name, command, folder, {}) for command in commands):
        shutil.copy(needs, stamp)


def _tried(session: nox.Session, what: str, command: list[str], folder: Path, env: dict[str, str]) -> bool:
    """Run a command that may fail, for want of network say; warn that tests are skipped then."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        session.warn(f"{what}: not prepared, tests that need it are skipped: {error}")
        return False
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        session.warn(f"{what}: not prepared, tests that need it are skipped: {reason}")
    return done.returncode == 0
