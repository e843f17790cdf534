"""Everything around a PyTorch training loop, nothing inside it."""

from importlib import import_module as _import
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batteries import averaging as averaging
    from batteries import blend as blend
    from batteries import checkpoint as checkpoint
    from batteries import data as data
    from batteries import distributed as distributed
    from batteries import loggers as loggers
    from batteries import predictions as predictions
    from batteries import progress as progress
    from batteries import report as report
    from batteries import scoreboard as scoreboard
    from batteries import splits as splits
    from batteries import training as training
    from batteries._backends import set_backends as set_backends
    from batteries._device import t2d as t2d
    from batteries._device import to_device as to_device
    from batteries._early_stopping import EarlyStopping as EarlyStopping
    from batteries._files import PathLike as PathLike
    from batteries._logs import get_logger as get_logger
    from batteries._meters import AverageMeter as AverageMeter
    from batteries._meters import AverageMetter as AverageMetter
    from batteries._meters import all_reduce_meters as all_reduce_meters
    from batteries._modules import check_in_sync as check_in_sync
    from batteries._modules import distribute as distribute
    from batteries._modules import share_buffers as share_buffers
    from batteries._modules import unwrap as unwrap
    from batteries._preemption import PreemptionGuard as PreemptionGuard
    from batteries._run import Run as Run
    from batteries._run import run_directory as run_directory
    from batteries._run import start_run as start_run
    from batteries._seeding import isolated_rng as isolated_rng
    from batteries._seeding import rng_state as rng_state
    from batteries._seeding import seed_all as seed_all
    from batteries._seeding import seed_worker as seed_worker
    from batteries._seeding import set_rng_state as set_rng_state
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
    from batteries.loggers import JsonLinesLogger as JsonLinesLogger
    from batteries.loggers import Loggers as Loggers
    from batteries.loggers import MLflowLogger as MLflowLogger
    from batteries.loggers import TensorBoardLogger as TensorBoardLogger
    from batteries.loggers import TensorBoardXLogger as TensorBoardXLogger
    from batteries.loggers import TrackioLogger as TrackioLogger
    from batteries.loggers import WandbLogger as WandbLogger
    from batteries.predictions import Predictions as Predictions
    from batteries.training import Window as Window
    from batteries.training import Windows as Windows
    from batteries.training import accumulate as accumulate

__version__ = "0.2.0"

__all__ = [
    "AverageMeter",
    "AverageMetter",
    "CheckpointError",
    "CheckpointManager",
    "EMA",
    "EarlyStopping",
    "JsonLinesLogger",
    "Loggers",
    "MLflowLogger",
    "PathLike",
    "Predictions",
    "PreemptionGuard",
    "Run",
    "SWA",
    "TensorBoardLogger",
    "TensorBoardXLogger",
    "TrackioLogger",
    "WandbLogger",
    "Window",
    "Windows",
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
    "loggers",
    "make_checkpoint",
    "predictions",
    "progress",
    "report",
    "resume",
    "rng_state",
    "run_directory",
    "save_checkpoint",
    "scoreboard",
    "seed_all",
    "seed_worker",
    "set_backends",
    "set_rng_state",
    "share_buffers",
    "splits",
    "start_run",
    "t2d",
    "to_device",
    "training",
    "unwrap",
    "update_bn",
]

# A name is loaded on first use, because the command line should start without torch.
_ROOMS = {
    "averaging": "EMA SWA average_checkpoints update_bn",
    "_backends": "set_backends",
    "checkpoint": "CheckpointError CheckpointManager load_checkpoint make_checkpoint resume "
    "save_checkpoint",
    "_device": "t2d to_device",
    "_early_stopping": "EarlyStopping",
    "_files": "PathLike",
    "loggers": "JsonLinesLogger Loggers MLflowLogger TensorBoardLogger TensorBoardXLogger "
    "TrackioLogger WandbLogger",
    "_logs": "get_logger",
    "_meters": "AverageMeter AverageMetter all_reduce_meters",
    "_modules": "check_in_sync distribute share_buffers unwrap",
    "predictions": "Predictions",
    "_preemption": "PreemptionGuard",
    "_run": "Run run_directory start_run",
    "_seeding": "isolated_rng rng_state seed_all seed_worker set_rng_state",
    "training": "Window Windows accumulate",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name.startswith("_"):
        raise AttributeError(f"module 'batteries' has no attribute {name!r}")
    if name in _ROOM_OF:
        value: object = getattr(_import(f"batteries.{_ROOM_OF[name]}"), name)
        if _ROOM_OF[name].startswith("_"):
            _import("batteries._public").move(value, __name__)
    else:
        try:
            value = _import(f"batteries.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"batteries.{name}":
                raise
            raise AttributeError(f"module 'batteries' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
