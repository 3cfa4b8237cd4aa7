"""The transformer's positional table, cropped to the picture before tracing.

Diffusers keeps a table of ``pos_embed_max_size`` squared positions (900 MB in fp32 for SD3.5) and crops its centre at run
time. A graph of fixed size needs the crop alone. A graph of dynamic size needs every crop, but the table is separable
(Vaswani-style sines and cosines of the column in the first half of the channels, of the row in the second)::

    table[row, column] = concat(columns[column], rows[row])

so two tables ``[pos_embed_max_size, channels / 2]`` hold it exactly. Whether a checkpoint's table really is separable is
checked bit for bit when it is written; a trained table that is not cannot be exported with a dynamic size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.errors import Complaint, ExportError
from exporters.student.weights.weight import Weight

TABLE = "pos_embed.pos_embed"


def crop_start(max_size: int, size: int) -> int:
    """First row (column) of the centred crop, as in diffusers ``PatchEmbed.cropped_pos_embed``."""
    return (max_size - size) // 2


class FixedPositions(nn.Module):
    """The positions of one grid, ``[1, rows * columns, channels]``, as a constant."""

    def __init__(self, config: Mapping[str, Any], grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.max_size, self.grid = config["pos_embed_max_size"], grid
        self.table = nn.Buffer(torch.empty(1, grid[0] * grid[1], channels))

    def forward(self, rows: int, columns: int) -> Tensor:
        """The table; it fits its one grid only."""
        return self.table

    def weights(self, table: Weight) -> dict[str, Weight]:
        """The centred crop of the checkpoint's table."""

        def load() -> np.ndarray:
            top, left = (crop_start(self.max_size, size) for size in self.grid)
            square = table.load().reshape(self.max_size, self.max_size, -1)
            return square[top : top + self.grid[0], left : left + self.grid[1]].reshape(1, -1, square.shape[-1])

        return {"table": Weight(tuple(self.table.shape), table.dtype, load, table.origin)}


class SeparablePositions(nn.Module):
    """The positions of any grid, from one table for rows and one for columns."""

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.max_size, self.column_channels = config["pos_embed_max_size"], channels // 2
        self.rows = nn.Buffer(torch.empty(self.max_size, channels - self.column_channels))
        self.columns = nn.Buffer(torch.empty(self.max_size, self.column_channels))

    def forward(self, rows: int, columns: int) -> Tensor:
        """``[1, rows * columns, channels]``; the sizes may be symbolic."""
        by_row = self.rows.narrow(0, crop_start(self.max_size, rows), rows)
        by_column = self.columns.narrow(0, crop_start(self.max_size, columns), columns)
        grid = [by_column[None, :, :].expand(rows, columns, -1), by_row[:, None, :].expand(rows, columns, -1)]
        return torch.cat(grid, dim=-1).flatten(0, 1)[None]

    def weights(self, table: Weight) -> dict[str, Weight]:
        """The first row's and first column's halves, once the table is known to be made of them."""

        def load(axis: str) -> np.ndarray:
            square = table.load().reshape(self.max_size, self.max_size, -1)
            columns, rows = square[0, :, : self.column_channels], square[:, 0, self.column_channels :]
            for i in range(self.max_size):
                rebuilt = np.concatenate([columns, np.broadcast_to(rows[i], (self.max_size, rows.shape[1]))], axis=-1)
                if not np.array_equal(square[i], rebuilt):
                    complaint = Complaint(table.origin, "the positional table is not separable", got=f"row {i} differs")
                    raise ExportError(
                        "This student cannot be exported with a dynamic size.", [complaint], "fix --height and --width"
                    )
            return np.ascontiguousarray(rows if axis == "rows" else columns)

        return {
            "rows": Weight(tuple(self.rows.shape), table.dtype, lambda: load("rows"), table.origin),
            "columns": Weight(tuple(self.columns.shape), table.dtype, lambda: load("columns"), table.origin),
        }
