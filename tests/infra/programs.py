"""The linters that the development environment brings as programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def run_program(name: str, *args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that lies beside Python, or on the PATH; `text` goes to its standard input."""
    program = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    assert program is not None, f"there is no {name}: install the extra 'dev'"
    return subprocess.run(
        [program, *args], input=text, capture_output=True, text=True, timeout=120, check=False
    )
