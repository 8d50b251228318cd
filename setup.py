"""Build shim: everything declarative is in setup.cfg, the C sources are named in coven/dataplane/build.py."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))
from coven.dataplane.build import BuildExamples, BuildPrograms  # noqa: E402

setup(cffi_modules=["coven/dataplane/build.py:ffi"], cmdclass={"build_ext": BuildPrograms, "build_py": BuildExamples})
