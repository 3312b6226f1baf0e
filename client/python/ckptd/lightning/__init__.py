"""Lightning's side of the client: `Trainer(plugins=[SidecarCheckpointIO()])`.

Works with `lightning` and with `pytorch_lightning`, also where both are installed.
"""

from .io import SidecarCheckpointIO
from .xla import XLASidecarCheckpointIO

__all__ = ["SidecarCheckpointIO", "XLASidecarCheckpointIO"]
