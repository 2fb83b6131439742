"""Check that every package that segformerpp needs is there as a wheel for ARM64 Linux.

    python scripts/check_arm64.py [--python 3.11] [--extra onnx ...]

pip resolves the dependencies in pyproject.toml for that platform from wheels alone: nothing is
built, installed or run. Conditions on the kind of machine are those of this one, so that packages
for CUDA may be listed that an ARM64 machine would not get.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
#: glibc 2.17, 2.28, 2.31, 2.34: what Debian 12, Ubuntu 22.04 and newer run.
PLATFORMS = (
    *(f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34)),
    *("manylinux2014_aarch64", "linux_aarch64"),
)


def main() -> None:
    """Resolve and list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="3.11", help="version of the interpreter there")
    parser.add_argument("--extra", nargs="*", default=["onnx"], help="extras to install too")
    args = parser.parse_args()
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in args.extra:
        wanted += project["optional-dependencies"][extra]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--only-binary", ":all:", "--target", folder, "--report", str(report)),
            *("--implementation", "cp", "--python-version", args.python),
            *(word for platform in PLATFORMS for word in ("--platform", platform)),
            *wanted,
        ]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("not every package has a wheel for ARM64 Linux")
        for item in json.loads(report.read_text())["install"]:
            wheel = item["download_info"]["url"].rpartition("/")[2].partition("#")[0]
            print(wheel)


if __name__ == "__main__":
    main()
