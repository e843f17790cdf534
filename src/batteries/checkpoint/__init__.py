"""Checkpoints: what they hold, how they are stored and loaded, and which of them are kept."""

from batteries.checkpoint.archive import read_note as read_note
from batteries.checkpoint.contents import Checkpoint as Checkpoint
from batteries.checkpoint.contents import Stateful as Stateful
from batteries.checkpoint.contents import make_checkpoint as make_checkpoint
from batteries.checkpoint.forms import consolidate as consolidate
from batteries.checkpoint.forms import export_safetensors as export_safetensors
from batteries.checkpoint.forms import latest as latest
from batteries.checkpoint.forms import peek as peek
from batteries.checkpoint.forms import read_checkpoint as read_checkpoint
from batteries.checkpoint.loading import LoadReport as LoadReport
from batteries.checkpoint.loading import load_checkpoint as load_checkpoint
from batteries.checkpoint.loading import resume as resume
from batteries.checkpoint.manager import CheckpointManager as CheckpointManager
from batteries.checkpoint.sharing import share_checkpoint as share_checkpoint
from batteries.checkpoint.storage import CheckpointError as CheckpointError
from batteries.checkpoint.storage import save_checkpoint as save_checkpoint
