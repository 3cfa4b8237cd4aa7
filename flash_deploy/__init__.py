"""What flash-deploy promises to its users: draw from bundles, build them, check them (docs/api.md).

Each name is loaded when it is first asked for, so that drawing needs the base install alone: neither torch nor onnx.

>>> import flash_deploy
>>> flash_deploy.Pipeline
<class 'deploy.runtime.pipeline.Pipeline'>
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.build.request import BuildRequest
    from deploy.build.run import build
    from deploy.build.verify import verify
    from deploy.bundle.folder import Bundle, open_bundle
    from deploy.bundle.inspect import inspect_path as inspect
    from deploy.errors import CheckFailed, Complaint, InputError
    from deploy.runtime import Noise, Pipeline, Progress, Runtime, StepCallback
    from exporters.student import Student, open_student

    __version__: str

__all__ = [
    "BuildRequest",
    "Bundle",
    "CheckFailed",
    "Complaint",
    "InputError",
    "Noise",
    "Pipeline",
    "Progress",
    "Runtime",
    "StepCallback",
    "Student",
    "__version__",
    "build",
    "inspect",
    "open_bundle",
    "open_student",
    "verify",
]

_HOMES = {
    "BuildRequest": ("deploy.build.request", "BuildRequest"),
    "Bundle": ("deploy.bundle.folder", "Bundle"),
    "CheckFailed": ("deploy.errors", "CheckFailed"),
    "Complaint": ("deploy.errors", "Complaint"),
    "InputError": ("deploy.errors", "InputError"),
    "Noise": ("deploy.runtime", "Noise"),
    "Pipeline": ("deploy.runtime", "Pipeline"),
    "Progress": ("deploy.runtime", "Progress"),
    "Runtime": ("deploy.runtime", "Runtime"),
    "StepCallback": ("deploy.runtime", "StepCallback"),
    "Student": ("exporters.student", "Student"),
    "build": ("deploy.build.run", "build"),
    "inspect": ("deploy.bundle.inspect", "inspect_path"),
    "open_bundle": ("deploy.bundle.folder", "open_bundle"),
    "open_student": ("exporters.student", "open_student"),
    "verify": ("deploy.build.verify", "verify"),
}
"""Where each name is at home, and what it is called there; the imports above say the same to type checkers."""


def _load(name: str) -> object:
    module, attribute = _HOMES[name]
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        message = f"{__name__}.{name} needs {error.name}, which is not installed: pip install 'flash-deploy[export]'"
        raise ImportError(message, name=error.name) from error


if not TYPE_CHECKING:  # a type checker that saw it would take every name for one of this module's

    def __getattr__(name: str) -> object:
        """Load a name when it is first asked for.

        Raises:
            AttributeError: there is no such name.
            ImportError: it needs packages that are not installed.
        """
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = metadata.version("flash-deploy") if name == "__version__" else _load(name)
        return value

    def __dir__() -> list[str]:
        """The public names, loaded or not."""
        return list(__all__)
