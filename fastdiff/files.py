"""Atomic writing of files, checksums on reading, and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.errors import FastdiffError, reason

if TYPE_CHECKING:
    from torch import Tensor

# Keys in the JSON metadata of a .safetensors file: that there are checksums, and the checksums.
_MARK, _CHECKSUMS = "checksums", "crc32"
_OURS = "fastdiff"  # what the names of such metadata begin with
_NOT_THERE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)  # what a file system does not have
_LOG = logging.getLogger(__name__)
LOCK, HALF = ".lock", ".half"  # names, and ends of names, of what is there for a while


class DamagedFile(FastdiffError):
    """A file whose contents are not those that were written."""


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context for code that writes ``path``: errors of the file system become FastdiffError.

    Raises:
        FastdiffError: the folder is missing or cannot be written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise FastdiffError(f"cannot write {Path(path)}: {reason(error)}") from None


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Atomic writing: a temporary path beside ``path``, renamed to it on success and removed on any failure.

        with atomic_path("out/samples.png") as temporary:
            image.save(temporary, format="PNG")

    Args:
        durable: flush file and folder to the disk (fsync, some 10 ms) at the end, so that a power cut leaves the old
            file or the new one. Otherwise it may leave an empty file.

    Raises:
        FastdiffError: the folder is missing or cannot be written.
    """
    target = Path(path)
    half = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{HALF}")
    temporary = half / target.name
    with writing(target):
        half.mkdir()  # a folder, as some writers have temporary files of their own beside what they write
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less what umask says
            mode = os.fstat(handle).st_mode
            os.close(handle)
            yield temporary
            temporary.chmod(mode)  # which another file may have replaced
            if durable:
                _sync(temporary)
            os.replace(temporary, target)
            if durable:
                with _where_possible():
                    _sync(target.parent)
        finally:
            shutil.rmtree(half, ignore_errors=True)


def remove_halves(folder: Path) -> None:
    """Remove what killed writers have left in a folder that is :func:`locked`."""
    with writing(folder):
        for half in folder.glob(f".*{HALF}"):
            if half.is_dir():
                shutil.rmtree(half)
            else:
                half.unlink(missing_ok=True)


@contextlib.contextmanager
def _where_possible() -> Iterator[None]:
    """Flush a folder to the disk. Some network file systems cannot, because their servers do it themselves."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, advice: str = "wait for it, or give another --out") -> Iterator[None]:
    """Lock ``folder`` for this process until the end of the block, or of the process, however it ends.

    Args:
        advice: end of the message to a process that finds the folder locked.

    Raises:
        FastdiffError: another process uses it, or it cannot be written.
    """
    import fcntl

    path = folder / LOCK
    with writing(path):
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(handle, 20).decode(errors="replace")
                os.close(handle)
                raise FastdiffError(
                    f"{folder} is in use by another run (process {owner}); {advice}"
                ) from None
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    os.close(handle)
                    raise
                _LOG.warning(
                    "%s has no locks (%s): make sure that no other run uses it", folder, reason(error)
                )
            if _is(handle, path):
                break
            os.close(handle)  # its owner removed it at its end, between our two calls
        os.truncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    try:
        yield
    finally:
        if _is(handle, path):
            path.unlink(missing_ok=True)
        os.close(handle)


def _is(handle: int, path: Path) -> bool:
    """True if an open file still has its name in the folder."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text from an untrusted file.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file atomically, with a checksum of each tensor and of the metadata.

    Args:
        metadata: at most one text, a JSON object, to which the checksums are added. (Several texts would be written in
            an order that changes from file to file.)

    Raises:
        FastdiffError: the folder is missing or cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ((key, text),) = metadata.items() or [(f"{_OURS}.tensors", "{}")]
    about = {**json.loads(text), _MARK: _CHECKSUMS}
    checksums = {"": _crc32_of(key, about), **{name: crc32(name, tensor) for name, tensor in tensors.items()}}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={key: json.dumps({**about, _CHECKSUMS: checksums})})
        except SafetensorError as error:  # not an OSError, even where the disk is full
            raise FastdiffError(f"cannot write {Path(path)}: {error}") from None


class StoredTensors:
    """An open .safetensors file; see :func:`open_tensors`."""

    def __init__(self, path: Path, archive: Any) -> None:
        self._path, self._archive = path, archive
        self.names: list[str] = list(archive.keys())
        self.metadata: dict[str, str] = archive.metadata() or {}
        self._checksums: dict[str, Any] | None = None  # none in a file of another program
        for key in self.metadata:
            self._take_checksums(key)

    def _take_checksums(self, key: str) -> None:
        """The checksums in the metadata, if there are any."""
        try:
            about = parse_json(self.metadata[key])
        except ValueError as error:
            if key.startswith(_OURS):
                raise DamagedFile(f"{self._path} is damaged: its metadata cannot be read: {error}") from None
            return
        if not isinstance(about, dict) or not {_MARK, _CHECKSUMS} & about.keys():
            return
        checksums = about.pop(_CHECKSUMS, None)
        if not isinstance(checksums, dict) or checksums.get("") != _crc32_of(key, about):
            raise DamagedFile(f"{self._path} is damaged: its metadata do not have their checksum")
        if checksums.keys() - {""} != set(self.names):
            raise DamagedFile(f"{self._path} is damaged: its tensors are not those that were written")
        del about[_MARK]
        self.metadata[key], self._checksums = json.dumps(about), checksums

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            DamagedFile: it does not have its checksum.
        """
        tensor = self._archive.get_tensor(name)
        if self._checksums is not None and crc32(name, tensor) != self._checksums[name]:
            raise DamagedFile(f"{self._path} is damaged: {name} does not have its checksum")
        return tensor


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[StoredTensors]:
    """The tensors of a .safetensors file, read one by one, and its metadata.

    Files of :func:`write_tensors` are checked against their checksums.

    Raises:
        DamagedFile: a broken file, another kind of file, or wrong checksums.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as archive:
            yield StoredTensors(path, archive)
    except (OSError, SafetensorError, MemoryError) as error:
        raise DamagedFile(f"{path} is broken or no safetensors file: {reason(error)}") from None


def crc32(name: str, tensor: Tensor) -> int:
    """CRC-32 checksum of a tensor's name, dtype, shape and bytes."""
    import torch

    begin = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy().data, begin)


def _crc32_of(key: str, about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps([key, about], sort_keys=True).encode())
