"""Student to bundle.

The names are loaded when they are first asked for: ``verify``, which lies here too, checks files in the base install.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.build.request import BuildRequest
    from deploy.build.run import build

__all__ = ["BuildRequest", "build"]


def __getattr__(name: str) -> Any:
    """Load a public name.

    Raises:
        AttributeError: there is no such name.
    """
    if name == "BuildRequest":
        from deploy.build.request import BuildRequest

        return BuildRequest
    if name == "build":
        from deploy.build.run import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
