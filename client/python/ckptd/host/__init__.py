"""The process that runs a Python CheckpointIO outside of the trainer.

`__main__.py` is the supervisor: it speaks with the daemon and needs neither torch nor anything of the
user's. It runs `worker.py`, which has both and may die of it, and starts it again.
"""
