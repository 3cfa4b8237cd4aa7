"""The page that draws from a bundle in a browser: written into the bundle, so that any static server can serve the folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deploy.bundle.manifest import Manifest
from deploy.errors import Complaint, InputError
from deploy.page.vendor import INSTALL, copy_web_runtime
from quantization.files import write_bytes

INDEX = "index.html"
FOLDER = "web"
VENDOR = f"{FOLDER}/vendor"


def write_page(folder: Path, web_runtime: Path | None) -> list[str]:
    """Write the page into a bundle's folder.

    Args:
        folder: the bundle's folder.
        web_runtime: a folder that passed :func:`deploy.page.vendor.check_web_runtime`; without one the page only says what to do.

    Returns:
        The files' paths in the bundle.
    """
    paths = []
    for source in resources.files("deploy.page").joinpath(FOLDER).iterdir():
        path = INDEX if source.name == INDEX else f"{FOLDER}/{source.name}"
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        write_bytes(target, source.read_bytes())
        paths.append(path)
    if web_runtime is not None:
        copied = copy_web_runtime(web_runtime, folder / VENDOR)
        paths += [file.relative_to(folder).as_posix() for file in copied]
    return sorted(paths)


def has_page(manifest: Manifest) -> bool:
    """Whether a bundle has a page."""
    return any(record.path == INDEX for record in manifest.files)


def check_page(manifest: Manifest) -> str:
    """Whether a bundle has its page, and what is still to be done for it.

    Returns:
        What to do before the page can draw; empty if nothing.

    Raises:
        InputError: the bundle has no page.
    """
    paths = {record.path for record in manifest.files}
    if not has_page(manifest):
        complaint = Complaint("manifest.json", "lists no page", INDEX, f"a bundle of the tier {manifest.tier}")
        raise InputError("The bundle has no page.", [complaint], "build it with `--tier browser`, in the native layout")
    if any(path.startswith(f"{VENDOR}/") for path in paths):
        return ""
    return f"the bundle holds no onnxruntime-web: run `{INSTALL}` and build it again with `--web-runtime DIR`"
