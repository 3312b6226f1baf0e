"""The goals, a few in each module: measure(settings) gives its Goals, in a process of its own."""

import importlib

# Module -> the goals that it measures. What the field measures is in `steady`.
GROUPS = {
    "overlap": ("P3",),
    "restore": ("P5", "P6"),
    "stream": ("P7",),
    "step": ("P8",),
    "costs": ("P9",),
    "many": ("P10", "P12"),
    "crowd": ("P11",),
    "backends": ("P13",),
}
FIELD = ("P1", "P2", "P4")
ALL = sorted({*FIELD, *sum(GROUPS.values(), ())}, key=lambda name: int(name[1:]))


class Runner:
    """Runs in the child."""

    def __init__(self, settings):
        self.settings = settings

    def measure(self, group):
        return importlib.import_module(f"rows.{group}").measure(self.settings)

    def close(self):
        """Nothing is held."""
