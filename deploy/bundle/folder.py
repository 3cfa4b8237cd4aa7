"""Open and check bundles: all that a device needs of them. What makes them is in :mod:`deploy.bundle.seal`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.manifest import NAME, Manifest, read_manifest
from deploy.bundle.plain_files import plain_files
from deploy.errors import BundleError, Complaint
from exporters.hashing import hash_file
from exporters.links import is_own

LOCK = ".lock"
LFS_POINTER = b"version https://git-lfs"
PAGE, PICTURES = "README.md", "card"  # what `flash-deploy card` writes
HISTORY = (".git", ".hg", ".svn")
BOOKKEEPING = (".cache", ".huggingface", ".msc", ".mv", ".mdl", "._____temp", "configuration.json")  # of model hubs' downloaders
BESIDE = {PAGE, PICTURES, *HISTORY, *BOOKKEEPING}
ANYWHERE = {".gitattributes", ".gitignore", ".gitkeep", ".gitmodules", ".hgignore", ".DS_Store"}


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are there in their right sizes.

    Attributes:
        folder: where it is.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest

    def file(self, path: str) -> Path:
        """A file of the bundle, by the path in the manifest."""
        return self.folder / path

    def plain(self, graph: str) -> contextlib.AbstractContextManager[Path]:
        """A folder in which a graph's files are files, and not links to blobs of a hub's cache; for as long as it is loaded."""
        return plain_files(self.folder, self.manifest.files_of(graph))


def open_bundle(folder: Path | str) -> Bundle:
    """Open a bundle; content is not read (``verify`` does that).

    Raises:
        BundleError: damaged, incomplete, or reaching outside its folder.
    """
    folder = Path(folder)
    if not is_own(folder / NAME, folder):
        raise BundleError(f"{folder} is not a bundle.", [Complaint(str(folder / NAME), "leads outside the bundle")])
    manifest = read_manifest(folder)
    complaints, remedy = [], "copy or build the bundle again"
    for record in manifest.files:
        file = folder / record.path
        if not is_own(file, folder):
            complaints.append(Complaint(str(file), "leads outside the bundle"))
        elif not file.is_file():
            complaints.append(Complaint(str(file), "missing"))
        elif (size := file.stat().st_size) != record.size_bytes and _is_pointer(file):
            complaints.append(Complaint(str(file), "is a git-lfs pointer, not the file"))
            remedy = "`git lfs pull` in its folder fetches the files"
        elif size != record.size_bytes:
            complaints.append(Complaint(str(file), "wrong size", f"{record.size_bytes} bytes", f"{size} bytes"))
    if complaints:
        raise BundleError(f"{folder} is incomplete.", complaints, remedy)
    return Bundle(folder, manifest)


def _is_pointer(file: Path) -> bool:
    """Whether a file is what git leaves in the place of a large one until git-lfs fetches it."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def check_files(bundle: Bundle) -> list[Complaint]:
    """Read every file and compare it with its checksum; also name files that the manifest does not know.

    What hubs, version control and ``flash-deploy card`` put beside the bundle's own files is left alone.
    """
    complaints = [
        Complaint(record.path, "content was changed", f"sha256 {record.sha256}", got)
        for record in bundle.manifest.files
        if (got := hash_file(bundle.file(record.path))) != record.sha256
    ]
    strangers = (file.relative_to(bundle.folder) for file in find_strangers(bundle.folder, bundle.manifest))
    foreign = [path.as_posix() for path in strangers if path.parts[0] not in BESIDE and path.name not in ANYWHERE]
    return complaints + [Complaint(path, "not a file of this bundle") for path in foreign]


def find_strangers(folder: Path, manifest: Manifest) -> list[Path]:
    """Everything in a bundle's folder that its manifest does not name; links to folders too, which are not followed."""
    listed = {record.path for record in manifest.files} | {NAME, LOCK}
    return [file for file in files_in(folder) if file.relative_to(folder).as_posix() not in listed]


def files_in(folder: Path) -> list[Path]:
    """Everything below a folder that is no folder; links are listed, and not followed."""
    return [file for file in sorted(folder.rglob("*")) if file.is_symlink() or not file.is_dir()]
