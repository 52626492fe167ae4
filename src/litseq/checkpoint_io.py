"""SafeCheckpointIO: checkpoints that are written whole or not at all, and checked before use."""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.serialization import get_crc32_options, get_unsafe_globals_in_checkpoint

__all__ = [
    "SHARD_COMMON",
    "SHARD_INDEX",
    "DamagedCheckpointError",
    "SafeCheckpointIO",
    "find_damage",
    "is_intact",
    "is_sealed",
    "is_sharded",
    "load_file",
    "seal",
    "unseal",
]

_log = logging.getLogger(__name__)

SHARD_INDEX, SHARD_COMMON = ".metadata", "meta.pt"
"""Files of a checkpoint in shards, as torch and Lightning name them: the first says which part of
every weight lies where; the other, written last, is all that ranks have in common."""

_SEAL = ".metadata.sha256"

_Location = Callable[[Any, str], Any] | torch.device | str | None


class DamagedCheckpointError(ValueError):
    """A file is not what was written.

    Args:
        path: The file.
        damage: What is wrong with it, to follow its name.
        remedy: What to do.
    """

    def __init__(
        self, path: Path, damage: str, *, remedy: str = "use another checkpoint of the run"
    ) -> None:
        super().__init__(f"{path} {damage}; {remedy}.")
        self.path = path
        self.damage = damage


class SafeCheckpointIO(TorchCheckpointIO):
    """Reads and writes the checkpoints of any LightningModule so that none is lost.

    A checkpoint is written beside its place, flushed to the disk, and then takes its place in one
    step: whenever a process or a machine stops, the file there is the former or the new one, whole.
    Lightning's own way goes by the system's folder for temporary files, and destroys the former
    file where that folder or the disk is another one or full. Tensors go straight into the file,
    which needs no second copy of them in memory, and each record has a checksum, so that a file
    alone tells whether it is what was written.

    ``Trainer(plugins=[SafeCheckpointIO()])``; works inside of Lightning's ``AsyncCheckpointIO``
    too. Strategies that write a folder of shards do not ask any plugin.

    URLs of other file systems, such as ``s3://``, go Lightning's way: whole or not at all is then
    what that storage makes of it, and nothing is checked.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - Lightning's signature
    ) -> None:
        """Writes a checkpoint whole or not at all.

        What a process that was killed has left unfinished for the same path is removed. A link is
        replaced, not what it points to.

        Raises:
            OSError: If it cannot be written; names path, cause, free space and what became of the
                former file, which stays as it is.
            TypeError: If ``storage_options`` are given, which a local file does not have.
        """
        if storage_options is not None or _scheme(path) != "file":
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = _as_path(path)
        part = target.with_name(f".{target.name}.{token_hex(4)}.part")
        handled = sys.exc_info()[1]  # what the caller is dealing with has not stopped us
        try:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            target.parent.mkdir(parents=True, exist_ok=True)
            for unfinished in target.parent.glob(f".{glob.escape(target.name)}.????????.part"):
                unfinished.unlink(missing_ok=True)
            _write(checkpoint, part)
            _warn_of_objects(part, target)
            part.replace(target)
            _sync_folder(target.parent)
        except BaseException as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            cause = _first_cause(error, handled)
            if isinstance(cause, OSError):
                raise _explained(cause, target) from cause
            raise cause  # noqa: B904 - it is the error itself, or what torch hid behind one

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: _Location = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Checks a checkpoint and reads its tensors and plain values; never runs code.

        Tensors are mapped from the file, not copied.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or holds objects, if it is to be fetched from the
                web, or if ``weights_only`` is False.
        """
        if weights_only is False:
            raise ValueError(
                f"{path}: weights_only=False would run any code that the file brings; leave it out."
            )
        if _scheme(path) in ("http", "https", "ftp"):
            raise ValueError(f"{path} is a URL; download the file, check it, and give its path.")
        if _scheme(path) != "file":
            return super().load_checkpoint(path, map_location, weights_only=True)  # type: ignore[arg-type]
        checkpoint: dict[str, Any] = load_file(_as_path(path), map_location=map_location)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, be it a file, a link or a folder of shards, if it is still there.

        A file that cannot be removed is left, with a warning: it costs room, and no run.
        """
        if _scheme(path) != "file":
            super().remove_checkpoint(path)
            return
        target = _as_path(path)
        try:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("%s could not be removed (%s) and stays.", target, error.strerror)


def is_sharded(path: Path) -> bool:
    """Whether a path is a folder such as FSDP and ``ModelParallelStrategy`` save."""
    return (path / SHARD_INDEX).is_file()


def seal(path: str | Path) -> None:
    """Notes the checksum of the index of a checkpoint in shards; all else brings its own.

    Args:
        path: A checkpoint that was just written; one of another kind is left alone.
    """
    if _scheme(path) == "file" and is_sharded(folder := _as_path(path)):
        part = folder / f"{_SEAL}.part"
        with part.open("w", encoding="ascii") as file:
            file.write(_index_checksum(folder))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / _SEAL)
        _sync_folder(folder)


def unseal(path: str | Path) -> None:
    """Makes a folder of shards one that is not whole, before its parts are written over."""
    if _scheme(path) == "file" and is_sharded(folder := _as_path(path)):
        (folder / SHARD_INDEX).unlink()
        (folder / _SEAL).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Whether the index is what it was, as far as anything was noted of it."""
    note = folder / _SEAL
    return not note.exists() or note.read_bytes() == _index_checksum(folder).encode("ascii")


def _index_checksum(folder: Path) -> str:
    return hashlib.sha256((folder / SHARD_INDEX).read_bytes()).hexdigest()


def load_file(path: Path, *, map_location: _Location = "cpu", verify: bool = True) -> Any:  # noqa: ANN401 - whatever was saved
    """Checks a file that ``torch.save`` wrote, then reads it without running code it may hold.

    Args:
        path: A local file.
        map_location: Where the tensors go, as in ``torch.load``; on the CPU they are mapped from
            the file, not copied.
        verify: Read and check the whole file; else only what it says of its tensors is read.

    Raises:
        DamagedCheckpointError: If the file is not what was written.
        FileNotFoundError: If there is no such file.
        ValueError: If it holds other things than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    if damage := find_damage(path, thorough=verify):
        raise DamagedCheckpointError(path, damage)
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds {refused[1] if refused else 'objects'}, which is neither a tensor nor a "
            f"plain value, and is not loaded; only files that cannot run code are read."
        ) from error
    except Exception as error:  # damage shows in a dozen kinds
        raise DamagedCheckpointError(path, "is damaged") from error


def find_damage(path: Path, *, thorough: bool = True) -> str | None:
    """Compares the index, the sizes and the checksums of an archive with its contents.

    Args:
        path: A file that ``torch.save`` wrote.
        thorough: Read the whole file; else only its end, which tells whether it was cut short.

    Returns:
        What is wrong, to follow the file's name, or None.
    """
    with path.open("rb") as file:
        if not _has_index(file):
            return f"({path.stat().st_size:,} bytes) is not a checkpoint, or was cut short"
        return "is damaged" if thorough and not is_intact(file) else None


def _has_index(file: IO[bytes]) -> bool:
    """Whether an archive's index stands where it ought to, at the end."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # where the index seems to lie on another disk
        return False


def is_intact(file: IO[bytes]) -> bool:
    """Compares an archive that ``torch.save`` wrote with its index and checksums, byte by byte."""
    try:
        with zipfile.ZipFile(file) as archive:
            return all(map(_is_plain, archive.infolist())) and archive.testzip() is None
    except Exception as error:  # damage shows in a dozen kinds
        _log.debug("%s: %s", file, error)
        return False


def _is_plain(record: zipfile.ZipInfo) -> bool:
    """Whether a record is as torch writes it: not compressed, and, in MS-DOS's bit, no folder.

    A compressed one could be of any size; of a folder torch would read nothing.
    """
    return record.compress_size == record.file_size and not record.external_attr & 0x10


def _write(checkpoint: dict[str, Any], part: Path) -> None:
    checksums = get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        with part.open("xb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    finally:
        torch.serialization.set_crc32_options(checksums)


def _warn_of_objects(part: Path, target: Path) -> None:
    if objects := get_unsafe_globals_in_checkpoint(str(part)):
        _log.warning(
            "%s holds %s, which will be refused when it is loaded; keep to tensors and plain "
            "values (str for a Path, float for a NumPy number) in hyper-parameters and states.",
            target,
            ", ".join(sorted(objects)),
        )


def _sync_folder(folder: Path) -> None:
    """Makes the new name last; some systems cannot, and the file itself is safe by then."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_cause(error: BaseException, handled: BaseException | None) -> BaseException:
    """Finds what stopped the writing: torch's archive complains about it in words of its own."""
    cause: BaseException | None = error
    while cause is not None and cause is not handled:
        if isinstance(cause, OSError) or not isinstance(cause, Exception):
            return cause
        cause = cause.__context__
    return error


def _explained(error: OSError, target: Path) -> OSError:
    facts = [f"could not save {target}: {error.strerror or error}"]
    with suppress(OSError):
        folder = next(parent for parent in target.absolute().parents if parent.is_dir())
        facts.append(f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free in {folder}")
    if os.path.isfile(target):  # False, not an error, where we may not look
        facts.append(f"the former {target.name} is intact")
    explained = OSError(f"{'; '.join(facts)}. {_remedy(error.errno)}")
    explained.errno = error.errno
    return explained


def _remedy(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Make room, or save to another disk."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make the folder writable, or save to another."
    if number in (errno.EEXIST, errno.ENOTDIR):
        return "A part of the path is a file, not a folder; choose another path."
    if number == errno.EISDIR:
        return "Move the folder of that name away, or save under another name."
    if number == errno.ENOENT:
        return "The folder or the unfinished file was removed; keep other processes out of it."
    return "Save to another folder."


def _scheme(path: str | Path) -> str:
    found = re.match(r"(\w[\w+.-]+)(?:://|::)", str(path))
    return found[1] if found else "file"


def _as_path(path: str | Path) -> Path:
    return Path(str(path).removeprefix("file://"))
