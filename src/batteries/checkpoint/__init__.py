"""Checkpoints: what they hold, how they are stored and loaded, and which of them are kept."""

from batteries.checkpoint._archive import read_note as read_note
from batteries.checkpoint._contents import Checkpoint as Checkpoint
from batteries.checkpoint._contents import Stateful as Stateful
from batteries.checkpoint._contents import make_checkpoint as make_checkpoint
from batteries.checkpoint._forms import consolidate as consolidate
from batteries.checkpoint._forms import export_safetensors as export_safetensors
from batteries.checkpoint._forms import latest as latest
from batteries.checkpoint._forms import peek as peek
from batteries.checkpoint._forms import read_checkpoint as read_checkpoint
from batteries.checkpoint._loading import LoadReport as LoadReport
from batteries.checkpoint._loading import load_checkpoint as load_checkpoint
from batteries.checkpoint._loading import resume as resume
from batteries.checkpoint._manager import CheckpointManager as CheckpointManager
from batteries.checkpoint._sharing import share_checkpoint as share_checkpoint
from batteries.checkpoint._storage import CheckpointError as CheckpointError
from batteries.checkpoint._storage import save_checkpoint as save_checkpoint
