"""Puts the C library into the package: the one that TIDBIT_LIBRARY names, or one that cargo builds here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

NAMES = {"win32": "tidbit.dll", "darwin": "libtidbit.dylib"}
NAME = NAMES.get(sys.platform, "libtidbit.so")


def library() -> Path:
    given = os.environ.get("TIDBIT_LIBRARY")
    if given:
        return Path(given)
    workspace = Path(__file__).resolve().parent.parent.parent
    profile = os.environ.get("TIDBIT_PROFILE", "release")
    command = ["cargo", "build", "--locked", "--profile", profile, "-p", "tidbit-ffi"]
    subprocess.run(command, cwd=workspace, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return workspace / target / profile / NAME


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        shutil.copyfile(library(), Path(self.build_lib) / "tidbit" / NAME)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3: there is no extension module in it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
