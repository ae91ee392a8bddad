"""The native engine's library: C, loaded with ctypes. Without a compiler the rest installs all the same."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("runtime/native")

setup(
    ext_modules=[
        Extension(
            "gradseg.runtime.native._native",
            sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=["-O3", "-pthread"],
            extra_link_args=["-pthread", "-lm"],
            optional=True,
        )
    ]
)
