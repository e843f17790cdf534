"""Metrics to trackers, without waiting for them."""

from batteries._lines import read_lines as read_lines
from batteries.loggers._background import read_together as read_together
from batteries.loggers._json_lines import JsonLinesLogger as JsonLinesLogger
from batteries.loggers._mlflow import MLflowLogger as MLflowLogger
from batteries.loggers._several import Logger as Logger
from batteries.loggers._several import Loggers as Loggers
from batteries.loggers._tensorboard import TensorBoardLogger as TensorBoardLogger
from batteries.loggers._tensorboard import TensorBoardXLogger as TensorBoardXLogger
from batteries.loggers._wandb import WandbLogger as WandbLogger
