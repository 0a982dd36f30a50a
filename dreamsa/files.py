"""Atomic writes: under its final name a file is complete or absent, whatever interrupts the
writer."""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
"""Prefix of unfinished files and folders; the number of the process that writes them follows."""
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)
FILE_MODE, FOLDER_MODE = 0o666 & ~_UMASK, 0o777 & ~_UMASK
"""Permissions of ordinary files and folders; those made by tempfile only their owner can read."""


def write_atomic(path: Path, content: bytes | Callable[[Path], Any]) -> None:
    """Write a file atomically: write a temporary file beside `path`, sync it and rename it.

    Args:
        content: The bytes, or a function that writes the temporary file at the path it is given.

    Raises:
        OSError: `path` cannot be written; what was there before is unchanged.
    """
    handle, name = tempfile.mkstemp(prefix=own_prefix(), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        part.write_bytes(content) if isinstance(content, bytes) else content(part)
        os.chmod(part, FILE_MODE)
        sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def own_prefix() -> str:
    """Prefix of this process's unfinished files and folders."""
    return f"{TEMPORARY}{os.getpid()}-"


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that have died left unfinished in a folder and in those below it."""
    for path in list(folder.rglob(f"{TEMPORARY}*")):
        number = path.name.removeprefix(TEMPORARY).partition("-")[0]
        if number.isdecimal() and is_alive(int(number)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def read_plain(path: Path, limit: int = 2**26) -> bytes:
    """Read an ordinary file that somebody else may have made.

    Args:
        limit: Maximum number of bytes.

    Raises:
        OSError: It is a symbolic link, which is not followed, a device or a pipe, or larger than
            the limit.
    """
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "It is a symbolic link, which is not followed", str(path))
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "It is not an ordinary file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"It is larger than {limit} bytes", str(path))
    return content


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity raise ValueError, because JSON has neither."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sync(path: Path) -> None:
    """Flush a file or folder to disk; a folder only where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # VirtualBox's and some network's folders: EINVAL, ENOTSUP
        if not path.is_dir() or error.errno in (errno.EIO, errno.ENOSPC):
            raise
    finally:
        os.close(descriptor)
