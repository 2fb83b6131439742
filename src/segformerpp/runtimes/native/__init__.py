"""Operators of our own for OpenVINO, in C++, where its own kernels are slower.

``SoftmaxAttention``; ``DepthwiseGelu``, which stands between the linear layers of a Mix-FFN;
``DecodeHead``, which is the head behind what each scale adds. They are compiled on the machine
that they run on, once, against the headers that OpenVINO's wheel brings along, and kept in the
cache. Where that cannot be (no compiler, a processor without AVX-512), OpenVINO's own kernels
compute the same.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from segformerpp import cache
from segformerpp.runtimes.openvino_core import core, ov
from segformerpp.runtimes.processor import instructions

logger = logging.getLogger(__name__)

#: An environment variable; ``off`` for OpenVINO's kernels.
SWITCH = "SEGFORMERPP_NATIVE"

_FOLDER = Path(__file__).parent
_NEEDED = ("avx512f", "avx512dq", "avx512bw", "avx512vl")  # as Linux and compilers call them
_BF16, _BF16_OPTION = "avx512_bf16", "-mavx512bf16"
_OPTIONS = ("-O2", "-std=c++17", "-shared", "-fPIC", *(f"-m{name}" for name in _NEEDED))
_SECONDS = 120.0


@lru_cache(maxsize=1)
def native_precisions() -> tuple[str, ...]:
    """The precisions in which networks may have these operators: none, f32, or f32 and bf16.

    The first call of a process gives the operators to OpenVINO's core; the first on a machine
    compiles them, which takes some seconds.
    """
    if os.environ.get(SWITCH) == "off" or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return ()
    able = instructions()
    if not able.issuperset(_NEEDED):
        return ()
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        logger.info("no operators of our own: there is no C++ compiler (c++, g++ or $CXX) here")
        return ()
    options = [*_OPTIONS, *([_BF16_OPTION] if _BF16 in able else [])]
    status = Path(compiler).stat()
    key = {
        "compiler": [compiler, status.st_size, status.st_mtime],
        "options": options,
        "source": cache.code_version("runtimes/native"),
        "openvino": [ov.__version__, ov.__file__],
    }
    if not cache.fetch("operators", key, lambda: _compiled(compiler, options), _loaded):
        return ()
    return ("f32", "bf16") if _BF16 in able else ("f32",)


def _compiled(compiler: str, options: list[str]) -> bytes:
    """The library; empty if it cannot be compiled, which is remembered as well."""
    home = Path(ov.__file__).parent
    libraries = [path.name for path in sorted(home.glob("libs/*")) if _is_needed(path.name)]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "operators.so")
        command = [
            *(compiler, *options, str(_FOLDER / "operators.cpp"), "-o", str(library)),
            *("-isystem", str(home / "include"), "-L", str(home / "libs")),
            *(f"-l:{name}" for name in libraries),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
            return library.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            logger.info("no operators of our own: they do not compile here: %s", said.strip())
            return b""


def _is_needed(library: str) -> bool:
    return library.startswith(("libopenvino.so.", "libtbb.so."))


def _loaded(library: bytes) -> bool:
    """Give a library to OpenVINO's core; whether that is possible."""
    if not library:
        return False
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        try:
            core().add_extension(file.name)
        except RuntimeError as error:
            logger.info("no operators of our own: %s", " ".join(str(error).split()))
            return False
    return True
