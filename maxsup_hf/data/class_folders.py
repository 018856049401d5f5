"""A folder with a subfolder of images for each class. What is not read is named, and no class disappears."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image

from maxsup_hf.output.messages import listed

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "eval", "test")
# What notebooks, archives and file managers leave behind.
TOOL_FOLDERS = (".ipynb_checkpoints", "__MACOSX", ".git", ".cache", ".thumbnails", "@eaDir", "$RECYCLE.BIN")
TOOL_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".gitignore")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def load_class_folders(argument: str, path: str) -> Dataset:
    """Read the images of a folder with a subfolder for each class. Columns: `image`, `label`.

    Images in deeper folders belong to the class at the top. Links are followed. Files that Pillow cannot read are left out,
    with a warning that counts them by their extension.

    Args:
        argument: the flag that names the folder, for messages.
        path: the folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds splits in place of classes, or no subfolders, or a class without an image that can be read.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {path!r}; expected one with a subfolder of images a class")
    dead = sorted(path.name for path in root.iterdir() if path.is_symlink() and not path.exists())
    if dead:  # a class would vanish
        raise FileNotFoundError(f"{argument}: links in {path!r} lead nowhere: {listed(dead)}; repair or remove them")
    folders = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in TOOL_FOLDERS]
    above = [folder for folder in folders if _contains(folder, root)]
    if above:
        names = sorted(folder.name for folder in above)
        logger.warning("%s: links to a folder above are not followed: %s", argument, listed(names))
    classes = sorted(folder for folder in folders if folder not in above)
    _check_layout(argument, root, classes)
    rows: list[tuple[str, int]] = []
    skipped: Counter[str] = Counter()
    without: dict[str, Counter[str]] = {}
    nested: list[str] = []
    for index, folder in enumerate(classes):
        images, others = image_files(folder)
        skipped += others
        rows += [(str(image), index) for image in images]
        if not images:
            without[folder.name] = others
        if any(image.parent != folder for image in images):
            nested.append(folder.name)
    if without:
        problems = listed([f"{name}: {_counted(others) or 'no files'}" for name, others in without.items()], separator="; ")
        raise ValueError(
            f"{argument}: a class needs images, and {len(without)} of the {len(classes)} in {path!r} have none that can be "
            f"read ({problems}); convert the files to jpeg or png, or remove the folder"
        )
    if nested:
        logger.warning("%s: images in folders inside a class belong to that class: %s", argument, listed(nested))
    report_skipped(argument, skipped)
    _name_what_lies_beside(argument, root)
    rows.sort()  # the order of `datasets`, so that `analyze --dataset` holds out the rows that `--train_dir` held out
    names = [folder.name for folder in classes]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": [image for image, _ in rows], "label": [label for _, label in rows]}, features)


def load_image_folder(argument: str, path: str) -> Dataset:
    """All images in a folder and its subfolders. Columns: `image`, `file`, and `label` (the subfolder) if none lies beside
    the subfolders.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no image in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {path!r}")
    files, skipped = image_files(root)
    report_skipped(argument, skipped)
    if not files:
        raise ValueError(f"{argument}: there is no image in {path!r}")
    names = [str(file.relative_to(root)) for file in files]
    columns = {"image": [str(file) for file in files], "file": names}
    if all("/" in name for name in names):
        columns["label"] = [name.partition("/")[0] for name in names]
    return Dataset.from_dict(columns).cast_column("image", Image())


def class_folder_splits(path: str) -> dict[str, Path]:
    """Split -> folder with a subfolder of images for each class, of a folder that is laid out like this or holds a folder
    like this for each split. Empty for any other, such as one with files of data or of metadata beside the folders."""
    root = Path(path)
    if not root.is_dir():
        return {}
    inside = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in TOOL_FOLDERS]
    found = {folder.name: folder for folder in inside} if _are_splits(inside) else {"train": root}
    return found if all(_holds_classes(folder) for folder in found.values()) else {}


def _are_splits(folders: list[Path]) -> bool:
    return all(folder.name.lower() in SPLIT_NAMES and any(x.is_dir() for x in folder.iterdir()) for folder in folders)


def _holds_classes(folder: Path) -> bool:
    """Whether images lie in its subfolders, and no files beside these but what tools leave."""
    beside = [x for x in folder.iterdir() if x.is_file() and x.name not in TOOL_FILES]
    known = _readable_extensions()
    return not beside and any(path.suffix.lower() in known for path in _files(folder))


def _check_layout(argument: str, root: Path, classes: list[Path]) -> None:
    if not classes:
        raise ValueError(
            f"{argument}: {str(root)!r} has no subfolders; put the images of each class into one of its own, as "
            f"{root / 'cat' / '1.jpeg'}"
        )
    if _are_splits(classes):
        raise ValueError(
            f"{argument}: {str(root)!r} holds a folder for each split ({', '.join(x.name for x in classes)}), not for each "
            f"class; give one of them (--{argument} {classes[0]}), or all as --dataset_name {root}"
        )


def image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a folder, sorted, and how many other files there are of each extension. Links are followed."""
    known = _readable_extensions()
    images, others = [], Counter[str]()
    for path in sorted(_files(folder)):
        if path.suffix.lower() in known or (not path.suffix and _is_image(path)):
            images.append(path)
        else:
            others[path.suffix] += 1
    return images, others


def report_skipped(argument: str, others: Counter[str]) -> None:
    """Log how many files of each extension are not read."""
    if others:
        logger.warning("%s: %s skipped, which cannot be read as images", argument, _counted(others))


def _files(folder: Path) -> Iterator[Path]:
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (parent != str(folder) and _contains(Path(parent), folder)):  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name not in TOOL_FOLDERS]
        # "._name" holds what macOS keeps of a file on other file systems
        yield from (Path(parent) / name for name in files if name not in TOOL_FILES and not name.startswith("._"))


def _contains(folder: Path, other: Path) -> bool:
    """Whether a folder, or what it links to, is or holds another one."""
    return Path(os.path.realpath(other)).is_relative_to(os.path.realpath(folder))


def _readable_extensions() -> set[str]:
    """Extensions of the files that Pillow reads; some others it only writes."""
    return {extension for extension, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}


def _is_image(path: Path) -> bool:
    try:
        with PIL.Image.open(path):
            return True
    except (OSError, ValueError, PIL.Image.DecompressionBombError):
        return False


def _name_what_lies_beside(argument: str, root: Path) -> None:
    files = [path for path in root.iterdir() if path.is_file() and path.name not in TOOL_FILES]
    images = [path for path in files if path.suffix.lower() in _readable_extensions()]
    if images:
        logger.warning(
            "%s: %d images lie beside the folders of the classes and are not used, as %s", argument, len(images), images[0]
        )
    for path in files:
        if path.name in METADATA:
            logger.warning(
                "%s: %s is not read, since the folders are the classes; to use its columns give --dataset_name %s",
                argument, path, root,
            )  # fmt: skip


def _counted(extensions: Counter[str]) -> str:
    """As `8 files .HEIC, 2 files without extension`."""
    return ", ".join(
        f"{count} {'file' if count == 1 else 'files'} {extension or 'without extension'}"
        for extension, count in extensions.most_common()
    )
