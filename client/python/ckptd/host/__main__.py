"""The host process as a program: python .../ckptd/host/__main__.py

Which host it is and where the daemon is it has from CKPTD_HOST_ID and CKPTD_ADDRESS.
"""

import json
import os
import sys
import types


def _find_package() -> None:
    """Makes `ckptd` a package without what its __init__ imports: torch takes a second to import."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    package = types.ModuleType("ckptd")
    package.__path__ = [folder]
    sys.modules["ckptd"] = package


if __name__ == "__main__":
    # In place of this folder, whose modules are no top-level ones: where the trainer finds modules.
    sys.path[:1] = json.loads(os.environ.pop("CKPTD_HOST_MODULES", "[]"))
    _find_package()
    from ckptd.host.supervisor import main

    sys.exit(main())
