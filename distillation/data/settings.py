"""The ``[data]`` of a recipe: where samples come from; unknown keys are refused.

::

    [data]
    kind = "folder"
    path = "pictures"
    resolution = 512

Paths are the recipe's: those that are not absolute begin at its folder.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["AnyData", "FolderData", "LatentsData", "PromptsData", "ShapesData", "ShardsData"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]  # numpy's generators take no negative seed; a scene adds 40 bits
Side = Annotated[int, msgspec.Meta(ge=8, multiple_of=8)]  # what SD3's autoencoder makes one latent of
Place = Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^\x00]*$")]  # no system takes a name with a zero in it


class _Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    pass


class ShapesData(_Data, frozen=True, kw_only=True, tag="shapes"):
    """Scenes of :mod:`distillation.world`, drawn when they are asked for, 64 pixels wide.

    Attributes:
        count: of scenes; their latents are encoded once.
        seed: of the scenes.
    """

    count: Positive = 20_000
    seed: Number = 0


class FolderData(_Data, frozen=True, kw_only=True, tag="folder"):
    """Pictures beside their captions (:mod:`distillation.data.folder`).

    Attributes:
        path: of the folder.
        resolution: side of the squares that pictures are cut to, in pixels.
    """

    path: Place
    resolution: Side


class ShardsData(_Data, frozen=True, kw_only=True, tag="shards"):
    """Tar files as webdataset writes them (:mod:`distillation.data.shards`).

    Attributes:
        path: of a folder, or a pattern with ``*`` or ``{0000..0099}``.
        resolution: side of the squares that pictures are cut to, in pixels.
    """

    path: Place
    resolution: Side


class LatentsData(_Data, frozen=True, kw_only=True, tag="latents"):
    """Latents, and prompts or embeddings, that were made before (:mod:`distillation.data.latents`).

    Attributes:
        path: of the folder.
    """

    path: Place


class PromptsData(_Data, frozen=True, kw_only=True, tag="prompts"):
    """Prompts alone, one a line.

    Attributes:
        file: of text in UTF-8.
    """

    file: Place


AnyData = ShapesData | FolderData | ShardsData | LatentsData | PromptsData
