"""Lightning's side of the client: `Trainer(plugins=[SidecarCheckpointIO()])`.

Works with `lightning` and with `pytorch_lightning`, also where both are installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .io import SidecarCheckpointIO
from .xla import XLASidecarCheckpointIO

if TYPE_CHECKING:
    from .callback import SidecarCheckpoint

__all__ = ["SidecarCheckpoint", "SidecarCheckpointIO", "XLASidecarCheckpointIO"]


def __getattr__(name: str) -> Any:
    # The only part that needs a Trainer: where there is Fabric alone, the others work, and where
    # both packages are installed, most programs need not import the second one.
    if name == "SidecarCheckpoint":
        from .callback import SidecarCheckpoint

        return SidecarCheckpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
