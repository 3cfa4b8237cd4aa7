"""Student to bundle."""

from deploy.build.request import BuildRequest
from deploy.build.run import build

__all__ = ["BuildRequest", "build"]
