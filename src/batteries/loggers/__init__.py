"""Metrics to trackers, without waiting for them."""

from batteries.lines import read_lines as read_lines
from batteries.loggers.background import read_together as read_together
from batteries.loggers.json_lines import JsonLinesLogger as JsonLinesLogger
from batteries.loggers.mlflow import MLflowLogger as MLflowLogger
from batteries.loggers.several import Logger as Logger
from batteries.loggers.several import Loggers as Loggers
from batteries.loggers.tensorboard import TensorBoardLogger as TensorBoardLogger
from batteries.loggers.tensorboard import TensorBoardXLogger as TensorBoardXLogger
from batteries.loggers.wandb import WandbLogger as WandbLogger
