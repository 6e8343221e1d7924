"""Folders of results: on a disk, on a path that hosts share, or in an object store (`s3://bucket/path`)."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from approx_env.errors import InputError


class Folder:
    """A folder whose files are written whole or not at all, and never appended to: object stores cannot.

    Args:
        place: a path, `s3://bucket/path` or `file:///path`. Credentials are found as the AWS tools find them;
            `AWS_ENDPOINT_URL` or `?endpoint_override=HOST:PORT&scheme=http` name another server.

    Raises:
        InputError: it is none of these.
    """

    def __init__(self, place: str | os.PathLike):
        text = os.fspath(place)
        try:
            self._files, path = _located(text)
        except (ValueError, OSError) as error:  # pyarrow's own are both
            raise InputError(f"{text!r} is no place for results ({error}): give a path or s3://bucket/path") from error
        self.place = text
        self.path = os.path.abspath(path) if self.local else path

    @property
    def local(self) -> bool:
        """Whether it is a path of this machine, perhaps one that others share."""
        return isinstance(self._files, fs.LocalFileSystem)

    @property
    def files(self) -> fs.FileSystem:
        """The file system that the folder lies on, at `path`."""
        return self._files

    def __truediv__(self, name: str) -> Folder:
        """The folder `name` in this one."""
        inner = copy.copy(self)  # with the same connection
        place, mark, query = self.place.partition("?")
        inner.place, inner.path = f"{place.rstrip('/')}/{name}{mark}{query}", f"{self.path.rstrip('/')}/{name}"
        return inner

    def __str__(self) -> str:
        return self.place.partition("?")[0]

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file `name` in it, is there."""
        return self._files.get_file_info(self._path(name)).type != fs.FileType.NotFound

    def create(self) -> None:
        """Makes the folder and those above it, where there are folders.

        Raises:
            FileExistsError: it is there.
        """
        if self.local:
            os.makedirs(self.path)
        elif self.exists():
            raise FileExistsError(str(self))

    def names(self) -> list[str]:
        """Names of the files in it, sorted; without those that are being written."""
        return self._names(fs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders in it, sorted."""
        return self._names(fs.FileType.Directory)

    def _names(self, kind: fs.FileType) -> list[str]:
        infos = self._files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == kind and not info.base_name.startswith("."))

    def read(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._files.open_input_file(self._path(name)) as file:  # an object comes in one piece
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Writes a file into the folder, which must be there; it is on the disk, or stored, when this returns.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        if self.local:
            self._write_locally(name, data)
            return
        stream = self._files.open_output_stream(self._path(name))
        stream.write(data)
        stream.close()  # not in a `finally`: to close is to publish

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a file of JSON."""
        self.write(name, as_json(value))

    def read_json(self, name: str) -> Any:
        """What a file of JSON says.

        Raises:
            ValueError: it holds something else.
        """
        return json.loads(self.read(name))

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def sweep(self) -> None:
        """Removes what was left by processes that were killed while they wrote; none may be writing now."""
        for path in Path(self.path).glob(_temporary("*", "*")) if self.local else ():
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the folder with all that it holds."""
        self._files.delete_dir(self.path)

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _write_locally(self, name: str, data: bytes) -> None:
        path = Path(self.path, name)
        temporary = path.with_name(_temporary(path.name, uuid.uuid4().hex))  # others may write the same file
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # of a write that failed


def _located(place: str) -> tuple[fs.FileSystem, str]:
    """The file system of a place, and the path on it."""
    place.encode()  # pyarrow takes no bytes that are no UTF-8
    if not place or "\0" in place:
        raise ValueError("it names no folder")
    scheme, mark, rest = place.partition("://")
    if not mark:
        return fs.LocalFileSystem(), place
    if scheme not in ("file", "s3"):  # others keep one waiting for credentials, and were never tried
        raise ValueError(f"{scheme}:// is not supported")
    if not rest.partition("?")[0].strip("/"):
        raise ValueError("it names no bucket")
    return fs.FileSystem.from_uri(place)


def _temporary(name: str, unique: str) -> str:
    return f".{name}.{unique}.tmp"


def as_json(value: Mapping[str, Any]) -> bytes:
    """A mapping as a file of JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


def _sync(folder: Path) -> None:
    """Brings a folder's list of files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
