"""A DataLoader whose every batch is a function of (seed, epoch, step), and which can go on."""

from batteries.data._loader import Arrival as Arrival
from batteries.data._loader import DataLoader as DataLoader
from batteries.data._shuffle import Shuffle as Shuffle
