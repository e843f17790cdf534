"""Real file systems for tests: small, read-only, or cut off from their disk in the middle."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of ext4 and xfs
_NO_LOG_FLUSH = struct.pack("I", 2)  # what the journal still has in memory is lost


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount something at a directory that is made for it."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        pytest.skip("needs Linux and root, to mount a file system")
    place.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs mounts, which this machine refuses: {error.stderr.decode().strip()}")
    try:
        yield place
    finally:
        # Lazily: a server that the test has left may not have ended yet.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def tmpfs(place: Path, size: int, more: str = "noatime") -> Iterator[Path]:
    """A file system that holds `size` bytes, in memory."""
    with mounted(place, "-t", "tmpfs", "-o", f"size={size},{more}", "tmpfs") as path:
        yield path


def make_image(image: Path, kind: str) -> Path:
    """A file with an empty file system in it."""
    tool = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip(f"needs mkfs.{kind}, to make a file system")
    with image.open("xb") as file:
        file.truncate(400 * 2**20)  # xfs takes no less than 300 MB
    subprocess.run([tool, "-q", str(image)], check=True)
    return image


def cut_power(path: Path) -> None:
    """Let a mounted file system forget all that is not on its disk, and take nothing any more."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(descriptor)


@contextmanager
def remounted(path: Path, option: str) -> Iterator[None]:
    """Change how a file system is mounted: "ro" for read-only."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)
