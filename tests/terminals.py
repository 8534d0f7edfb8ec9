"""A command on a terminal of its own."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping

from tests.runs import ROOT, environment


def on_terminal(code: str, *, columns: int = 80, until: str = "", variables: Mapping[str, str] | None = None) -> str:
    """Return what a Python program shows on a terminal: until it ends, or until it shows `until`."""
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shell = {name: value for name, value in environment().items() if name not in ("COLUMNS", "PYTHONUNBUFFERED")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=ROOT,
        env={**shell, "TERM": "xterm", **(variables or {})},
        start_new_session=True,
    )
    os.close(its)
    output = b""
    try:
        while not until or until.encode() not in output:
            try:
                part = os.read(mine, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            output += part
    finally:
        if until:
            process.kill()
        process.wait(timeout=60)
        os.close(mine)
    return output.decode().replace("\r\n", "\n")
