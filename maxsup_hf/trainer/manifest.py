"""The manifest of a checkpoint: its files with their sizes and hashes, and the settings of the run that wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from maxsup_hf.output.files import plain, replacing

MANIFEST = "checkpoint-manifest.json"  # NOT_PUSHED of maxsup_hf.hub.staging keeps checkpoint-* out of a published model
BUFFER = 1 << 18  # fits into the cache of a core
THREADS = 8  # half of them wait for the disk
# What a Trainer reads from a checkpoint if it is there, so it must be what was written.
READ_IF_THERE = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


def write_manifest(folder: str | Path, contents: Mapping[str, Any]) -> None:
    """Write the manifest of a folder, once all of its files are on the disk.

    Files are hashed while others are flushed. The manifest takes its name last, so that a folder that has one is complete,
    even after a power cut.

    Args:
        folder: in which every process has written its files.
        contents: JSON values that are kept beside the files.
    """
    folder = Path(folder)
    paths = _files(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        flushed = pool.map(_flush, [*paths, *(path for path in folder.rglob("*") if path.is_dir())])
        hashes = list(pool.map(_hash, paths))
        list(flushed)  # raises what a flush raised
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "xxh3_128": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    manifest = plain({**contents, "files": files})
    with replacing(folder / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps({**manifest, "xxh3_128": _hash_of_json(manifest)}, indent=1), encoding="utf-8")
        _flush(unfinished)
    _flush(folder)


def renew_manifest(folder: Path) -> None:
    """Write the manifest of a folder again if files were added, deleted or written since."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    written = (folder / MANIFEST).stat().st_mtime_ns
    paths = _files(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    if set(names) != set(manifest["files"]) or any(path.stat().st_mtime_ns >= written for path in paths):
        write_manifest(folder, manifest)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a folder, or `None` if it has none.

    Raises:
        ValueError: the manifest is not what was written, or it was written by a version with another layout.
    """
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("xxh3_128") != _hash_of_json(manifest):
            raise ValueError("its own hash differs")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # not JSON, or of something else
        raise ValueError(f"{MANIFEST} is damaged ({error})") from error
    if not _has_known_layout(manifest):
        raise ValueError(f"{MANIFEST} was written by a version of maxsup_hf that this one cannot read: update maxsup_hf")
    return manifest


def _has_known_layout(manifest: Mapping[str, Any]) -> bool:
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        return False
    return all(isinstance(entry, dict) and {"size", "xxh3_128"} <= entry.keys() for entry in files.values())


def changed_files(folder: str | Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files of a folder, one phrase each: missing, of another size, of another content, or added."""
    folder = Path(folder)
    files = manifest["files"]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _change(folder / name, files[name]["size"], files[name]["xxh3_128"]), files)
        changes = [f"{name} {change}" for name, change in zip(files, found, strict=True) if change]
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    added = [name for name in names if name not in files and name.endswith(READ_IF_THERE)]
    return changes + [f"{name} was added later: move it out of the checkpoint" for name in added]


def _change(path: Path, size: int, xxh3_128: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found:,} bytes, and {size:,} were written"
        return None if _hash(path) == xxh3_128 else "has changed since it was written (its hash differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _hash(path: Path) -> str:
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(BUFFER))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _hash_of_json(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
