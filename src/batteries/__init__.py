"""Everything around a PyTorch training loop, nothing inside it."""

from batteries import averaging as averaging
from batteries import blend as blend
from batteries import checkpoint as checkpoint
from batteries import data as data
from batteries import distributed as distributed
from batteries import progress as progress
from batteries import splits as splits
from batteries.averaging import EMA as EMA
from batteries.averaging import SWA as SWA
from batteries.averaging import average_checkpoints as average_checkpoints
from batteries.averaging import update_bn as update_bn
from batteries.checkpoint import CheckpointError as CheckpointError
from batteries.checkpoint import CheckpointManager as CheckpointManager
from batteries.checkpoint import load_checkpoint as load_checkpoint
from batteries.checkpoint import make_checkpoint as make_checkpoint
from batteries.checkpoint import resume as resume
from batteries.checkpoint import save_checkpoint as save_checkpoint
from batteries.device import t2d as t2d
from batteries.device import to_device as to_device
from batteries.early_stopping import EarlyStopping as EarlyStopping
from batteries.loggers import TensorBoardLogger as TensorBoardLogger
from batteries.logs import get_logger as get_logger
from batteries.meters import AverageMeter as AverageMeter
from batteries.meters import AverageMetter as AverageMetter
from batteries.meters import all_reduce_meters as all_reduce_meters
from batteries.modules import check_in_sync as check_in_sync
from batteries.modules import distribute as distribute
from batteries.modules import share_buffers as share_buffers
from batteries.modules import unwrap as unwrap
from batteries.predictions import Predictions as Predictions
from batteries.preemption import PreemptionGuard as PreemptionGuard
from batteries.run import run_directory as run_directory
from batteries.seeding import isolated_rng as isolated_rng
from batteries.seeding import rng_state as rng_state
from batteries.seeding import seed_all as seed_all
from batteries.seeding import seed_worker as seed_worker
from batteries.seeding import set_rng_state as set_rng_state
from batteries.training import accumulate as accumulate

__version__ = "0.1.0"

__all__ = [
    "AverageMeter",
    "AverageMetter",
    "CheckpointError",
    "CheckpointManager",
    "EMA",
    "EarlyStopping",
    "Predictions",
    "PreemptionGuard",
    "SWA",
    "TensorBoardLogger",
    "accumulate",
    "all_reduce_meters",
    "average_checkpoints",
    "averaging",
    "blend",
    "check_in_sync",
    "checkpoint",
    "data",
    "distribute",
    "distributed",
    "get_logger",
    "isolated_rng",
    "load_checkpoint",
    "make_checkpoint",
    "progress",
    "resume",
    "rng_state",
    "run_directory",
    "save_checkpoint",
    "seed_all",
    "seed_worker",
    "set_rng_state",
    "share_buffers",
    "splits",
    "t2d",
    "to_device",
    "unwrap",
    "update_bn",
]
