"""Operators of our own for OpenVINO, in C++, where its own kernels are slower.

``SoftmaxAttention``; ``DepthwiseGelu``, which stands between the linear layers of a Mix-FFN, and
``QuantisedDepthwiseGelu`` in networks in int8, where attention multiplies queries and keys as
bytes; ``DecodeHead``, which is the head behind what each scale adds. They are compiled on the
machine that they run on, once, against the headers that OpenVINO's wheel brings along, and kept in
the cache. Where that cannot be (no compiler, no cache, a processor without AVX-512), OpenVINO's own
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segformerpp import cache
from segformerpp.runtimes.openvino_core import core, ov
from segformerpp.runtimes.processor import instructions

logger = logging.getLogger(__name__)

#: An environment variable; ``off`` for OpenVINO's kernels.
SWITCH = "SEGFORMERPP_NATIVE"

_SOURCES = [Path(__file__).parent / name for name in ("operators.cpp", "kernels.cpp")]
# As Linux calls the instructions. Those of AMX, which OpenVINO uses, are faster.
_NEEDED = "avx512f", "avx512dq", "avx512bw", "avx512vl"
_FOR_BF16, _AMX = ("avx512_bf16", "avx512_vnni", "avx512vbmi"), "amx_bf16"
_OPTIONS = "-O2", "-std=c++17", "-fPIC"
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
    if os.environ.get(SWITCH) == "off":
        return _none(f"{SWITCH} is off")
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or not able.issuperset(_NEEDED):
        return _none("they are for Linux, and x86 processors with AVX-512")
    names = (os.environ.get("CXX", ""), "c++", "g++")
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        return _none("there is no C++ compiler (c++, g++ or $CXX)")
    if not _can_be_kept():
        return _none("they would be compiled at every start: the cache is off, or not writable")
    bf16 = able.issuperset(_FOR_BF16) and _AMX not in able
    used = _NEEDED + _FOR_BF16 if bf16 else _NEEDED
    options = [*_OPTIONS, *(f"-m{name.replace('_', '')}" for name in used)]
    status = Path(compiler).stat()
    key = {
        "compiler": [compiler, status.st_size, status.st_mtime],
        "options": options,
        "source": cache.code_version("runtimes/native"),
        "openvino": [ov.__version__, ov.__file__],
    }
    try:
        if not cache.fetch("operators", key, lambda: _compiled(compiler, options), _load):
            return _none("they did not compile; `segformerpp cache --clear` has it tried again")
    except (OSError, RuntimeError) as error:
        return _none(" ".join(str(error).split()))
    return ("f32", "bf16") if bf16 else ("f32",)


def _none(why: str) -> tuple[str, ...]:
    logger.info("no operators of our own: %s", why)
    return ()


def _can_be_kept() -> bool:
    folder = cache.folder()
    if folder is None:
        return False
    present = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(present, os.W_OK)


def _compiled(compiler: str, options: list[str]) -> bytes:
    """The library; empty if the compiler fails, which is remembered as well.

    Raises:
        OSError: if there is no place for temporary files.
    """
    home = Path(ov.__file__).parent
    libraries = [path.name for path in sorted(home.glob("libs/*")) if _is_needed(path.name)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        parts = [str(Path(folder, source.stem + ".o")) for source in _SOURCES]

        def run(*arguments: str) -> None:
            command = [compiler, *options, *arguments]
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)

        def compile_part(source: Path, part: str) -> None:
            run("-c", str(source), "-o", part, "-isystem", str(home / "include"))

        library = Path(folder, "operators.so")
        try:
            list(pool.map(compile_part, _SOURCES, parts))
            found = [f"-l:{name}" for name in libraries]
            run("-shared", *parts, "-o", str(library), "-L", str(home / "libs"), *found)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stderr or b"").decode(errors="replace")
            logger.info("%s: %s", compiler, " ".join(said.split()) or error)
            return b""
        return library.read_bytes()


def _is_needed(library: str) -> bool:
    return library.startswith(("libopenvino.so.", "libtbb.so."))


def _load(library: bytes) -> bool:
    """Give a library to OpenVINO's core; False if there is none.

    Raises:
        OSError, RuntimeError: if that is impossible.
    """
    if not library:
        return False
    # In memory: folders for temporary files may forbid code.
    with os.fdopen(os.memfd_create("operators"), "wb") as file:
        file.write(library)
        file.flush()
        # Not by `self`: what another library was loaded by would be taken for it.
        core().add_extension(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    return True
