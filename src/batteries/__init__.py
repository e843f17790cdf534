"""Everything around a PyTorch training loop, nothing inside it."""

from batteries import checkpoint as checkpoint
from batteries import distributed as distributed
from batteries import progress as progress
from batteries.checkpoint import CheckpointError as CheckpointError
from batteries.checkpoint import CheckpointManager as CheckpointManager
from batteries.checkpoint import load_checkpoint as load_checkpoint
from batteries.checkpoint import make_checkpoint as make_checkpoint
from batteries.checkpoint import save_checkpoint as save_checkpoint
from batteries.device import t2d as t2d
from batteries.device import to_device as to_device
from batteries.loggers import TensorBoardLogger as TensorBoardLogger
from batteries.logs import get_logger as get_logger
from batteries.meters import AverageMeter as AverageMeter
from batteries.meters import AverageMetter as AverageMetter
from batteries.modules import distribute as distribute
from batteries.modules import share_buffers as share_buffers
from batteries.modules import unwrap as unwrap
from batteries.run import run_directory as run_directory
from batteries.seeding import seed_all as seed_all
from batteries.seeding import seed_worker as seed_worker

__version__ = "0.1.0"

__all__ = [
    "AverageMeter",
    "AverageMetter",
    "CheckpointError",
    "CheckpointManager",
    "TensorBoardLogger",
    "checkpoint",
    "distribute",
    "distributed",
    "get_logger",
    "load_checkpoint",
    "make_checkpoint",
    "progress",
    "run_directory",
    "save_checkpoint",
    "seed_all",
    "seed_worker",
    "share_buffers",
    "t2d",
    "to_device",
    "unwrap",
]
