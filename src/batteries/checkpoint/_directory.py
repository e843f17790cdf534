"""What a manager's directory holds, and how it follows from the last save."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from batteries._files import (
    Place,
    check_inside,
    link_or_copy,
    naming,
    remove_leftovers,
    temporary_name,
)
from batteries._foreign import Most, check
from batteries._rundir.history import NAME, MetricsFile, Row, is_row, read_history
from batteries._rundir.names import checkpoint_name, epoch_of
from batteries.checkpoint._latest import newest_first
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import Note, identity_of, read_note, read_seal
from batteries.checkpoint._write_shards import name_shards

_MANY = 1000  # a note lists at most so many epochs
# A note says who wrote the file, the row of its epoch, and which epochs are kept.
_NOTE: dict[str, Any] = {
    "owner": {"id": Most(str, 100), "host": Most(str, 1000), "pid": int},
    "row": dict,
    "kept": [int],
    "every": (None, int),
}
_epoch: Callable[[Row], int] = itemgetter("epoch")


class Kept(NamedTuple):
    """The epochs that have a file of their own, as a container."""

    all: bool
    some: frozenset[int] = frozenset()
    every: int | None = None
    last: float = math.inf  # later epochs are forgotten

    @classmethod
    def of(cls, note: Note) -> Kept:
        return cls("kept" not in note, frozenset(note.get("kept", ())), note.get("every"))

    def note(self) -> Note:
        """A part of a note. If the list would be too long, it is empty, and no file is removed."""
        long = self.all or len(self.some) > _MANY
        return {} if long else {"kept": sorted(self.some), "every": self.every}

    def __contains__(self, epoch: object) -> bool:
        if not isinstance(epoch, int) or epoch > self.last:
            return False
        return self.all or epoch in self.some or bool(self.every and epoch % self.every == 0)


class Epochs:
    """The rows of the epochs in their order. Adding one is fast, however many there are."""

    def __init__(self, metric: str, minimization: bool, rows: Iterable[Row] = ()) -> None:
        self.metric = metric
        self.minimization = minimization
        self._set(sorted(rows, key=_epoch))

    def _set(self, rows: list[Row]) -> None:
        scores = (self._score(row) for row in rows)
        self._ranked = sorted((s, place) for place, s in enumerate(scores) if s is not None)
        self.rows = rows

    def _score(self, row: Row) -> float | None:
        score = row[self.metric]
        return None if score is None else score if self.minimization else -score

    def add(self, row: Row) -> list[Row]:
        """Add a row. Rows of its epoch and of later ones are removed and returned."""
        place = bisect.bisect_left(self.rows, row["epoch"], key=_epoch)
        forgotten = self.rows[place:]
        if forgotten:
            self._set([*self.rows[:place], row])
            return forgotten
        self.rows.append(row)
        score = self._score(row)
        if score is not None:
            bisect.insort(self._ranked, (score, place))  # of equal scores the earlier comes first
        return forgotten

    def take_back(self, forgotten: list[Row]) -> None:
        """Undo the last `add`."""
        self._set(self.rows[:-1] + forgotten)

    def ranked(self) -> Iterator[Row]:
        """The rows with a finite score, best first."""
        return (self.rows[place] for _, place in self._ranked)

    def best(self, number: int | None = None) -> list[Row]:
        """The best rows, at most `number`; all of them if it is None."""
        return list(islice(self.ranked(), number))

    def has(self, row: Row) -> bool:
        place = bisect.bisect_left(self.rows, row["epoch"], key=_epoch)
        return self.rows[place : place + 1] == [row]


@dataclass(eq=False, kw_only=True)
class Directory:
    """The checkpoints in a directory, and the scores of all epochs."""

    # Everything follows from metrics.json and last.pth. A save writes the new last.pth, with a
    # note that has the epoch's scores and the epochs to keep, and puts it in place in one step.
    # Before this step nothing has changed. After it, any program that reads the note can do the
    # rest (settle), as often as it needs to. metrics.json is written last: until then it names the
    # files that are to be removed.

    folder: Path = Place()  # type: ignore[assignment]  # noqa: RUF009
    metric: str
    minimization: bool
    sharded: bool
    save_n_best: int | None
    keep_every: int | None

    def __post_init__(self) -> None:
        self._suffix = ".dcp" if self.sharded else ".pth"
        self.epochs = Epochs(self.metric, self.minimization, self._read_rows())
        self.metrics_file = MetricsFile(self.memory_path)

    @property
    def best_path(self) -> Path:
        return self.folder / f"best{self._suffix}"

    @property
    def last_path(self) -> Path:
        return self.folder / f"last{self._suffix}"

    @property
    def memory_path(self) -> Path:
        return self.folder / NAME

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def check_links(self) -> None:
        """Raise if a path that a save writes to is a link that leads out of the directory."""
        shards = [self.shards] if self.sharded else []
        for path in (*shards, self.last_path, self.memory_path):
            check_inside(path, self.folder)

    def check_free(self, epoch: int, kept: Kept) -> None:
        """Raise if a file of the user has the name of an epoch that is to be kept."""
        path = self._path(epoch)
        ours = epoch in map(_epoch, self.epochs.rows) or epoch not in kept
        if path.is_dir() and not path.is_symlink():
            return  # the save itself raises
        if path.exists() and not ours and (self._row_in(path) or {}).get("epoch") != epoch:
            raise CheckpointError(
                f"{path} was not written by this manager, and epoch {epoch} needs that name: "
                "move the file away; nothing was saved or removed"
            )

    def kept(self, row: Row) -> Kept:
        """The epochs that are to have a file of their own after a row is added."""
        if self.save_n_best is None:
            return Kept(True)
        later = self.epochs.rows[-1:] and self.epochs.rows[-1]["epoch"] >= row["epoch"]
        old = self.epochs.best(None if later else self.save_n_best)
        few = [known for known in old if known["epoch"] < row["epoch"]]
        best = Epochs(self.metric, self.minimization, [*few, row]).best(self.save_n_best)
        return Kept(False, frozenset(map(_epoch, best)), self.keep_every)

    def follow(self, row: Row, kept: Kept, thorough: bool) -> None:
        """Add the row of a new last.pth, and make the directory follow from it."""
        before = self.epochs.best(self.save_n_best or 0)
        forgotten = self.epochs.add(row)
        try:
            gone = [known for known in before if known["epoch"] not in kept]
            self._settle(kept, forgotten, None if thorough or forgotten else gone)
        except BaseException:
            self.epochs.take_back(forgotten)
            raise

    def recover(self) -> None:
        """Complete the save that a killed process has begun."""
        own = {self.last_path.name, self.best_path.name, self.memory_path.name}
        ends = ".json" if self.sharded else (".json", ".pth")  # temporary .dcp names are claims
        remove_leftovers(
            self.folder,
            lambda name: name.endswith(ends) and (name in own or epoch_of(name) is not None),
        )
        self._part_links(own)
        note = self._note_in(self.last_path)
        if self.memory_path.exists() or not self.epochs.rows:  # else the rows are in memory
            self.epochs = Epochs(self.metric, self.minimization, self._read_rows())
        if "row" not in note:
            return
        row, kept = note["row"], Kept.of(note)
        written = self.memory_path.exists() and self.epochs.rows[-1:] == [row]
        forgotten = self.epochs.add(row)
        found = {row["epoch"] for _, row in self._epoch_files() if self.epochs.has(row)}
        expected = {epoch for epoch in map(_epoch, self.epochs.rows) if epoch in kept}
        if not written or found != expected:
            self._settle(kept, [] if written else forgotten)

    def know_last(self) -> None:
        """Add the row of the last save, which another rank may still have to complete."""
        row = self._row_in(self.last_path)
        if row is not None and not self.epochs.has(row):
            self.epochs.add(row)

    def newest(self) -> Path | None:
        """The newest checkpoint that this manager or an earlier one has written."""
        own = (path for path in newest_first(self.folder) if path.suffix == self._suffix)
        there = (path for path in own if identity_of(path))
        named = (self.last_path, self.best_path)
        return next((path for path in there if path in named or self._is_known(path)), None)

    def found_owner(self) -> dict[str, Any] | None:
        """The process that wrote the last checkpoint; None if it is unknown."""
        return self._note_in(self.last_path).get("owner")

    # ---------------------------------------------------------------- what follows

    def _settle(self, kept: Kept, forgotten: list[Row], gone: list[Row] | None = None) -> None:
        """Make the rest of the directory follow from a new last.pth. It can be repeated.

        Args:
            forgotten: Rows that are no longer in the history.
            gone: Rows whose file is to be removed. Default: found by reading the directory.
        """
        epoch = self.epochs.rows[-1]["epoch"]
        kept = kept._replace(last=epoch)
        best = self._best_at_hand(Kept(True) if gone is None else kept)
        # Files are removed first, since new names need room on the disk, too. The file of the best
        # epoch is removed only after best.pth is a name of its data.
        self._remove(kept, forgotten, gone, best)
        if epoch in kept:
            self._let_be(self._path(epoch), self.last_path)
        if best is not None:
            self._let_be(self.best_path, best)
            if best.name not in (self.best_path.name, self.last_path.name):
                self._remove(kept, forgotten, gone)
        elif self._row_in(self.best_path) is not None:
            self._drop(self.best_path)
        if gone is None:
            self.metrics_file.forget()
        self.metrics_file.add(self.metric, self.minimization, self.epochs.rows)

    def _remove(
        self, kept: Kept, forgotten: list[Row], gone: list[Row] | None, besides: Path | None = None
    ) -> None:
        if gone is None:
            found = [path for path, _ in self._epoch_files(exempt=kept)]
        else:
            found = [self._path(row["epoch"]) for row in gone]
        for path in found:
            known = self._row_in(path) in forgotten or self._is_known(path)
            if path != besides and known:  # other files are the user's
                self._drop(path)

    def _let_be(self, name: Path, source: Path) -> None:
        """Make `name` another name of the data of `source`."""
        if _same_data(name, source):
            return
        if self.sharded:
            check_inside(source, self.shards)
            name_shards(name, source.readlink())
        else:
            link_or_copy(source, name)

    def _drop(self, name: Path) -> None:
        if self.sharded:
            name.rename(temporary_name(name))  # this claims the directory that it links to
        else:
            name.unlink()

    def _best_at_hand(self, kept: Kept) -> Path | None:
        """The file of the best epoch that still has a file: that of a better one may be lost."""
        named = [(path, self._row_in(path)) for path in (self.best_path, self.last_path)]
        for row in self.epochs.ranked():
            path = self._path(row["epoch"])
            if row["epoch"] in kept and self._row_in(path) == row:
                return path
            for name, own in named:
                if own == row:
                    return name
        return None

    def _part_links(self, own: set[str]) -> None:
        """Replace links from one name to another by files. A save would write through a link."""
        for path in [] if self.sharded else self.folder.iterdir():
            ours = path.name in own or epoch_of(path.name) is not None
            beside = os.path.realpath(path.parent) == str(Path(os.path.realpath(path)).parent)
            if ours and path.is_symlink() and beside:
                link_or_copy(path, path, over_links=True) if path.exists() else path.unlink()
            elif ours:
                check_inside(path, self.folder)

    # ---------------------------------------------------------------- what is there

    def _path(self, epoch: int) -> Path:
        return self.folder / checkpoint_name(epoch, self._suffix)

    def _epoch_files(self, exempt: Container[object] = ()) -> Iterator[tuple[Path, Row]]:
        """The files whose name and note say the same epoch."""
        for path in list(self.folder.glob(f"*{self._suffix}")):
            epoch = epoch_of(path.name)
            row = None if epoch is None or epoch in exempt else self._row_in(path)
            if row is not None and row["epoch"] == epoch:
                yield path, row

    def _note_in(self, path: Path) -> Note:
        """The note in a file of a manager with this metric; an empty note for any other file."""
        ours = path.exists() and (path.is_symlink() or not self.sharded)
        note = (read_note(path) or {}) if ours else {}
        try:
            check(note, _NOTE)
        except ValueError:  # another program's
            return {}
        if not _NOTE["owner"].keys() <= note.get("owner", {}).keys():
            return {}
        with_score = is_row(note.get("row")) and self.metric in note["row"]
        return note if with_score else {name: note[name] for name in note if name == "owner"}

    def _row_in(self, path: Path) -> Row | None:
        row: Row | None = self._note_in(path).get("row")
        return row

    def _is_known(self, path: Path) -> bool:
        row = self._row_in(path)
        return row is not None and self.epochs.has(row)

    def _read_rows(self) -> list[Row]:
        path = self.memory_path
        if not path.exists():  # lost, or not written yet: each checkpoint has its own row
            notes = [row for _, row in self._epoch_files()]
            notes += [row for row in map(self._row_in, (self.best_path, self.last_path)) if row]
            known = {row["epoch"]: row for row in notes if self.metric in row}
            return [known[epoch] for epoch in sorted(known)]
        try:
            with naming(path):
                found = read_history(path, inside=self.folder)
            if found.foreign or not all(found.metric in row for row in found.rows):
                raise ValueError("some of its rows have no score")
        except (ValueError, IsADirectoryError) as error:
            raise ValueError(
                f"{path} was not written by a CheckpointManager, or is damaged; move it away: the "
                "next manager makes a new one, with the scores of all epochs that still have a "
                "checkpoint"
            ) from error
        if found[:2] != (self.metric, self.minimization):
            raise ValueError(
                f"{path} ranks by {found[0]!r} with metric_minimization={found[1]}, not by "
                f"{self.metric!r} with {self.minimization}; use another log directory"
            )
        return found.rows


def _same_data(path: Path, other: Path) -> bool:
    """Whether two names are those of one file, or of two copies of it."""
    if not path.exists():
        return False
    seal, others = read_seal(path), read_seal(other)
    copied = seal is not None and others is not None and seal.digest == others.digest
    return copied or path.samefile(other)
