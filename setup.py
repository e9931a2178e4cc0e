"""The compiled build; everything else about the package is in pyproject.toml.

With TXPROXY_COMPILE=1 the modules of txproxy/wire and txproxy/core are compiled by mypyc from the
source that otherwise runs as it is. Where there is no C compiler, or it fails, the wheel is the
interpreted one, unless TXPROXY_COMPILE_REQUIRED=1. mypy must be installed (`--no-build-isolation`).
"""

import os
from pathlib import Path

from setuptools import Extension, setup

COMPILED_PACKAGES = ("txproxy/wire", "txproxy/core")


def compiled_modules() -> list[str]:
    """Every module of the compiled packages.

    Not their __init__.py: these hold a docstring, and a compiled package lacks its __file__ while
    it is being imported.
    """
    return [
        str(module)
        for package in COMPILED_PACKAGES
        for module in sorted(Path(package).rglob("*.py"))
        if module.name != "__init__.py"
    ]


def extensions() -> list[Extension]:
    """What setuptools has to compile: nothing, unless TXPROXY_COMPILE=1."""
    if os.environ.get("TXPROXY_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    # mypycify follows imports out of the compiled packages, to modules that may not be installed.
    found = mypycify(["--ignore-missing-imports", *compiled_modules()], group_name="txproxy")
    for extension in found:
        extension.optional = os.environ.get("TXPROXY_COMPILE_REQUIRED") != "1"
        if os.name == "posix":
            # It is in -Wall, and takes gcc a minute in a generated file of 20 MB.
            extension.extra_compile_args.append("-Wno-misleading-indentation")
    return list(found)


setup(ext_modules=extensions())
