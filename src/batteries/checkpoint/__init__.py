"""Checkpoints: what they hold, how they are stored and loaded, and which of them are kept."""

from batteries import _public
from batteries.checkpoint._contents import Checkpoint, Stateful, make_checkpoint
from batteries.checkpoint._export import consolidate, export_safetensors
from batteries.checkpoint._latest import latest
from batteries.checkpoint._load import Loaded, load_checkpoint, resume
from batteries.checkpoint._load_states import LoadReport
from batteries.checkpoint._manager import CheckpointManager
from batteries.checkpoint._read import peek, read_checkpoint
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import read_note
from batteries.checkpoint._sharing import share_checkpoint
from batteries.checkpoint._write import save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "LoadReport",
    "Loaded",
    "Stateful",
    "consolidate",
    "export_safetensors",
    "latest",
    "load_checkpoint",
    "make_checkpoint",
    "peek",
    "read_checkpoint",
    "read_note",
    "resume",
    "save_checkpoint",
    "share_checkpoint",
]
_public.own(globals())
