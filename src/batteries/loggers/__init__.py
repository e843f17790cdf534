"""Loggers that send metrics to trackers in the background."""

from batteries import _public
from batteries._rundir.lines import read_lines
from batteries.loggers._json_lines import JsonLinesLogger
from batteries.loggers._mlflow import MLflowLogger
from batteries.loggers._several import Logger, Loggers
from batteries.loggers._tensorboard import TensorBoardLogger, TensorBoardXLogger
from batteries.loggers._trackio import TrackioLogger
from batteries.loggers._values import Metrics, read_together
from batteries.loggers._wandb import WandbLogger

__all__ = [
    "JsonLinesLogger",
    "Logger",
    "Loggers",
    "MLflowLogger",
    "Metrics",
    "TensorBoardLogger",
    "TensorBoardXLogger",
    "TrackioLogger",
    "WandbLogger",
    "read_lines",
    "read_together",
]
_public.own(globals())
