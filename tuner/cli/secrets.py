"""A password in an argument: hidden from the list of processes, which every user of the machine may read."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path


def password_of(url: str) -> str:
    """The password of a database URL as it is written, before the host or in the query; empty without one.

    >>> password_of("postgresql://me:se:cret@host/db"), password_of("sqlite:///tuner.db")
    ('se:cret', '')
    """
    after = url.partition("://")[2]
    if after.startswith("/"):
        return ""  # a file
    if password := after.rpartition("@")[0].partition(":")[2]:
        return password
    found = re.search(r"[?&](?:password|passwd|sslpassword)=([^&]+)", after)
    return found[1] if found else ""


def hide_argument(secret: str) -> bool:
    """Overwrite a secret in this process's arguments, as others see them, with as many asterisks.

    Whether others cannot see it now. Linux keeps the arguments in the process's own memory; elsewhere they stay.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        # Fields 48 and 49 of proc(5)'s stat: where the arguments begin and end. The name before them may hold blanks.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        wanted = secret.encode()
        if start and wanted in ctypes.string_at(start, end - start):
            hidden = ctypes.string_at(start, end - start).replace(wanted, b"*" * len(wanted))
            ctypes.memmove(start, hidden, end - start)
        return wanted not in Path("/proc/self/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return False
