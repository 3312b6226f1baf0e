"""Finds Lightning's classes, in whichever of its packages are installed.

`lightning` and `pytorch_lightning` hold separate classes of the same name, and each Trainer insists
on its own. So a class of ours derives from those of each package that is installed.
"""

from __future__ import annotations

import importlib
from typing import Any, List, Tuple

#: Where each package has what Fabric and the Trainer share.
FABRIC = ("lightning.fabric", "lightning_fabric")
#: Where each package has its Trainer.
TRAINER = ("lightning.pytorch", "pytorch_lightning")


def classes(packages: Tuple[str, ...], module: str, name: str) -> Tuple[Any, ...]:
    """The classes `name` in `module` of each of the packages that is installed.

    Raises ImportError if none is.
    """
    found: List[Any] = []
    for package in packages:
        try:
            found.append(getattr(importlib.import_module(f"{package}.{module}"), name))
        except ImportError:
            continue
    if not found:
        raise ImportError(
            "ckptd.lightning: neither lightning nor pytorch-lightning can be imported. Install one "
            "of them, or use ckptd.save and ckptd.load, which need neither."
        )
    return tuple(found)
