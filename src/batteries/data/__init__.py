"""A DataLoader whose every batch is a function of (seed, epoch, step), and which can go on."""

from batteries.data.loader import Arrival as Arrival
from batteries.data.loader import DataLoader as DataLoader
from batteries.data.shuffle import Shuffle as Shuffle
