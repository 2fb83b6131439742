"""Operators of our own for OpenVINO, in C++, where its own kernels are slower.

``SoftmaxAttention``; ``DepthwiseGelu``, which stands between the linear layers of a Mix-FFN;
``DecodeHead``, which is the head behind what each scale adds. They are compiled on the machine
that they run on, once, against the headers that OpenVINO's wheel brings along, and kept in the
cache. Where that cannot be (no compiler, no cache, a processor without AVX-512), OpenVINO's own
kernels compute the same.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from segformerpp import cache
from segformerpp.runtimes.openvino_core import core, ov
from segformerpp.runtimes.processor import instructions

logger = logging.getLogger(__name__)

#: An environment variable; ``off`` for OpenVINO's kernels.
SWITCH = "SEGFORMERPP_NATIVE"

_FOLDER = Path(__file__).parent
# As Linux and compilers call the instructions. Those of AMX, which OpenVINO uses, are faster.
_NEEDED, _BF16, _AMX = ("avx512f", "avx512dq", "avx512bw", "avx512vl"), "avx512_bf16", "amx_bf16"
_OPTIONS = ("-O2", "-std=c++17", "-shared", "-fPIC", *(f"-m{name}" for name in _NEEDED))
_SECONDS = 120.0
_lock = threading.Lock()
_found: tuple[str, ...] | None = None


def native_precisions() -> tuple[str, ...]:
    """The precisions in which networks may have these operators: none, f32, or f32 and bf16.

    The first call of a process gives the operators to OpenVINO's core, before which it reads no
    network that has them; the first on a machine compiles them, which takes some seconds.
    """
    global _found
    with _lock:
        if _found is None:
            _found = _find()
        return _found


def _find() -> tuple[str, ...]:
    able = instructions()
    if (
        os.environ.get(SWITCH) == "off"
        or (sys.platform, platform.machine()) != ("linux", "x86_64")
        or not able.issuperset(_NEEDED)
    ):
        return ()
    names = (os.environ.get("CXX", ""), "c++", "g++")
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        logger.info("no operators of our own: there is no C++ compiler (c++, g++ or $CXX) here")
        return ()
    if cache.folder() is None:
        logger.info("no operators of our own: they would be compiled at every start")
        return ()
    bf16 = _BF16 in able and _AMX not in able
    options = [*_OPTIONS, *(["-mavx512bf16"] if bf16 else [])]
    status = Path(compiler).stat()
    key = {
        "compiler": [compiler, status.st_size, status.st_mtime],
        "options": options,
        "source": cache.code_version("runtimes/native"),
        "openvino": [ov.__version__, ov.__file__],
    }
    try:
        cache.fetch("operators", key, lambda: _compiled(compiler, options), _load)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.info("no operators of our own: %s", " ".join(said.split()))
        return ()
    return ("f32", "bf16") if bf16 else ("f32",)


def _compiled(compiler: str, options: list[str]) -> bytes:
    """The library.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be compiled here.
    """
    home = Path(ov.__file__).parent
    libraries = [path.name for path in sorted(home.glob("libs/*")) if _is_needed(path.name)]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "operators.so")
        command = [
            *(compiler, *options, str(_FOLDER / "operators.cpp"), "-o", str(library)),
            *("-isystem", str(home / "include"), "-L", str(home / "libs")),
            *(f"-l:{name}" for name in libraries),
        ]
        subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", errors="replace",
            timeout=_SECONDS,
        )  # fmt: skip
        return library.read_bytes()


def _is_needed(library: str) -> bool:
    return library.startswith(("libopenvino.so.", "libtbb.so."))


def _load(library: bytes) -> None:
    """Give a library to OpenVINO's core.

    Raises:
        OSError, RuntimeError: if that is impossible.
    """
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        core().add_extension(file.name)
