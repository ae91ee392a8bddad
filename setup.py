"""The native engine's library: C, loaded with ctypes, so that one wheel does for every Python of a platform.

Without a compiler the rest installs all the same: py3-none-any.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("runtime/native")


class BuildLibrary(build_ext):
    def get_ext_filename(self, name):
        return name.replace(".", "/") + ".so"

    def build_extension(self, ext):
        library = Path(self.get_ext_fullpath(ext.name))
        if library.exists():  # it may be another platform's, and building may fail
            library.unlink()
        self.force = True
        super().build_extension(ext)


class TagWheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        for extension in self.distribution.ext_modules:
            extension.optional = not self.plat_name_supplied  # a wheel for a platform that was named has it

    def get_tag(self):
        self.root_is_pure = not any(
            Path(path).exists() for path in self.get_finalized_command("build_ext").get_outputs()
        )
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
    ext_modules=[
        Extension(
            "gradseg.runtime.native._native",
            sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=["-O3", "-g0", "-pthread"],
            extra_link_args=["-s", "-pthread", "-lm"],
            optional=True,
        )
    ],
)
