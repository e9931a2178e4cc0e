"""Django's tests: they are in its source distribution only, which pip knows how to find."""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parents[2] / ".django-suite"
_PATIENCE: Final = 300.0  # seconds for the download


class SourceError(Exception):
    """The source distribution is not to be had."""


def fetch() -> Path:
    """The folder in which runtests.py is, of the Django that is installed; downloaded unless it was
    before.

    Raises SourceError.
    """
    wanted = version("django")
    source = CACHE / f"django-{wanted}"
    if not source.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            _download(wanted, Path(directory)).rename(source)
    return source / "tests"


def _download(wanted: str, directory: Path) -> Path:
    """Download and unpack; returns the folder that was in the archive."""
    what = ["--no-deps", "--no-binary", "django", f"django=={wanted}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*pip, *what, "--dest", str(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"pip download django=={wanted} takes too long") from error
    if done.returncode:
        raise SourceError(f"pip download django=={wanted}: {done.stderr.strip()[-500:]}")
    archives = list(directory.glob("*.tar.gz"))
    if len(archives) != 1:
        raise SourceError(f"pip download django=={wanted} left {archives}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(directory, filter="data")
    archives[0].unlink()
    (unpacked,) = directory.iterdir()
    return unpacked
