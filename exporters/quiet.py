"""Other libraries' advice, kept from users that it is not for."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Let transformers, diffusers and the hub's client log errors only; to be called before their first import.

    They log advice (an image processor without torchvision, say) that is for those who program with them, and draw bars of
    their own for what takes milliseconds.
    """
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
