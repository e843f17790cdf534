"""Tools for a training loop: accumulation, clipping, parameter groups, learning rates, speed."""

from batteries import _public
from batteries.training._accumulation import Window, Windows, accumulate
from batteries.training._batch_size import BatchSize, find_batch_size
from batteries.training._checksums import log_checksums
from batteries.training._groups import parameter_groups
from batteries.training._policy import StepPolicy
from batteries.training._rates import LearningRates, lr_range_test
from batteries.training._throughput import Throughput, Watched

__all__ = [
    "BatchSize",
    "LearningRates",
    "StepPolicy",
    "Throughput",
    "Watched",
    "Window",
    "Windows",
    "accumulate",
    "find_batch_size",
    "log_checksums",
    "lr_range_test",
    "parameter_groups",
]
_public.own(globals())
