"""Which checkpoints are kept: the last, the best, the best few."""

from __future__ import annotations

import errno
import math
import os
import uuid
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from batteries import distributed
from batteries._direction import said_direction
from batteries._files import (
    PathLike,
    check_inside,
    link_or_copy,
    locked_directory,
    make_directory,
    naming,
    remove_leftovers,
    replace_link,
    temporary_name,
)
from batteries._foreign import Most, brief, check, is_epoch
from batteries._preemption import timed_save
from batteries._processes import is_alive, is_own, own_process
from batteries._rundir import record as run_record
from batteries._rundir.history import NAME, MetricsFile, Row, is_row, read_history
from batteries._rundir.names import checkpoint_name, epoch_of
from batteries.checkpoint._background import BackgroundWriter
from batteries.checkpoint._epochs import Epochs
from batteries.checkpoint._read import newest_first
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import Note, digest_read, identity_of, read_note, read_seal
from batteries.checkpoint._write import save_checkpoint
from batteries.checkpoint._write_shards import (
    claim_shards,
    commit_shards,
    name_shards,
    new_folder,
    remove_unnamed,
    write_shards,
)
from batteries.distributed._rank_zero import others_wait
from batteries.distributed._waiting import wait_until

_MANY = 1000  # epochs that a note names; where more are kept it says so
# What a note says: who wrote the file, the row of its epoch and the epochs that are kept.
_NOTE: dict[str, Any] = {
    "owner": {"id": Most(str, 100), "host": Most(str, 1000), "pid": int},
    "row": dict,
    "kept": [int],
    "every": (None, int),
}


class CheckpointManager:
    """Keep the checkpoints that matter: the last one, the best one, the best few.

    >>> manager = CheckpointManager("runs/digits/checkpoints", metric="accuracy",
    ...                             metric_minimization=False, save_n_best=3)
    >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
    >>> manager.process(score=0.93, epoch=1, checkpoint=checkpoint)
    >>> sorted(path.name for path in manager.logdir.iterdir())
    ['best.pth', 'exp_1.pth', 'last.pth', 'metrics.json']

    `exp_{epoch}.pth` are the best few, of epochs, or of steps if those are passed; all names of an
    epoch are hard links to data that is written once. `metrics.json` has the scores of all epochs
    and is the manager's memory: a new manager on the same directory goes on where the last one
    stopped, and finishes what it left half done. Another program's checkpoints are safe from it:
    before its first save the program has loaded the last one, or its first epoch is the next one.
    Other files in the directory stay: of its own it removes only those that `metrics.json` names.
    It follows no symbolic link out of the directory, which may be one itself.

    Args:
        logdir: Created when the first checkpoint is written.
        metric: The name of the score that decides; without one it is a loss.
        metric_minimization: Whether lower is better; whoever names a metric says it.
        save_n_best: How many `exp_*.pth` to keep; 0 keeps `best.pth` and `last.pth` alone, None
            keeps all.
        keep_every: Keep each epoch that is a multiple of it besides.
        sharded: For states of FSDP2 and other DTensors. Each rank writes its part, so all ranks
            call `process` and `save_last`. The names end in `.dcp` and are symbolic links to
            directories in `shards`, which `torch.distributed.checkpoint` writes;
            `load_checkpoint` reads them on any number of ranks. For storage that all ranks share,
            and that you trust.
        background: Copy the checkpoint and return; another thread writes it, as safely. Call
            `wait()` before reading the files, and `close()`, or use the manager in a `with`, at
            the end. The error of a save is raised by the next call.
        go_on: Save also where the directory has checkpoints of another program, and this one has
            loaded none of them.

    Raises:
        TypeError: A metric without its direction.
        ValueError: The directory has the scores of another metric.
        NotADirectoryError: `logdir` is a file.
        PermissionError: One of its names is a symbolic link that leads out of the directory.
    """

    # Everything follows from metrics.json and last.pth. A save writes the new last.pth, with a
    # note that has the epoch's scores and what is to be kept, and puts it in place in one step:
    # before it nothing has happened, after it the rest (_settle) can be carried out by anyone who
    # reads the note, as often as need be. metrics.json comes last: until then it names what is to
    # be removed.

    def __init__(
        self,
        logdir: PathLike,
        metric: str | None = None,
        metric_minimization: bool | None = None,
        save_n_best: int | None = 5,
        *,
        keep_every: int | None = None,
        background: bool = False,
        sharded: bool = False,
        go_on: bool = False,
    ) -> None:
        if save_n_best is not None and save_n_best < 0:
            raise ValueError(f"save_n_best is {save_n_best}; expected 0 or more, or None for all")
        if keep_every is not None and keep_every < 1:
            raise ValueError(f"keep_every is {keep_every}; expected 1 or more")
        if sharded and background:
            raise ValueError("a sharded checkpoint cannot be saved in the background: choose one")
        if metric is None and metric_minimization is None:
            metric_minimization = True  # a loss
        of = "CheckpointManager" if metric is None else f"CheckpointManager(metric={metric!r})"
        self.logdir = Path(logdir)
        self.metric = "loss" if metric is None else metric
        self.metric_minimization = said_direction(metric_minimization, of)
        self.save_n_best = save_n_best
        self.keep_every = keep_every
        self.background = background
        self.sharded = sharded
        self.go_on = go_on
        self._suffix = ".dcp" if sharded else ".pth"
        self._owner = {**own_process(), "id": uuid.uuid4().hex}
        self._owns = False  # wrote the last.pth that is there
        self._seen = False  # that rank 0 saves into the same directory
        self._disturbed = False  # an error came in the middle of a save
        self._waiting: list[Row | None] = []  # to be written in the background
        self._writer = BackgroundWriter() if background and distributed.is_main() else None
        if self.logdir.exists() and not self.logdir.is_dir():
            make_directory(self.logdir)  # says what is in the way
        self._epochs = Epochs(self.metric, self.metric_minimization, self._read_rows())
        self._metrics_file = MetricsFile(self._memory_path)
        if self.logdir.is_dir() and distributed.is_main():
            with locked_directory(self.logdir):
                try:
                    self._recover()
                    if self.sharded:
                        remove_unnamed(self._shards)
                except OSError as error:  # what can only be read can be looked at
                    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                        raise
                    self._disturbed = True
        self._found = identity_of(newest) if (newest := self._newest()) else None

    @property
    def best_path(self) -> Path:
        """Where the best checkpoint is."""
        return self.logdir / f"best{self._suffix}"

    @property
    def last_path(self) -> Path:
        """Where the last checkpoint is."""
        return self.logdir / f"last{self._suffix}"

    @property
    def best_score(self) -> float | None:
        """The best score so far; None before the first finite one."""
        best = self._all.best(1)
        return float(best[0][self.metric]) if best else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The scores of all epochs, in their order: `[{"epoch": 1, "loss": 0.5}, ...]`."""
        return [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in self._all.rows
        ]

    @property
    def _all(self) -> Epochs:
        # Those that wait first: one that is written meanwhile is then in both.
        waiting = [row for row in self._waiting if row is not None]
        if not waiting:
            return self._epochs
        both = Epochs(self.metric, self.metric_minimization, self._epochs.rows)
        for row in waiting:
            both.add(row)
        return both

    def process(
        self,
        score: float | Tensor | Mapping[str, float | Tensor],
        epoch: int,
        checkpoint: Mapping[str, Any],
    ) -> None:
        """Save the checkpoint of an epoch, and remove those that are no longer among the best.

        >>> manager = CheckpointManager("runs/digits/checkpoints")
        >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
        >>> manager.process(score={"loss": 0.5, "accuracy": 0.9}, epoch=1, checkpoint=checkpoint)

        Call it on every rank, or, unless sharded, on rank 0 alone: global rank 0 writes. Ranks
        that call it too wait for that, however long it takes; others wait in their next
        collective, for as long as the process group allows. NaN and infinities are never best and
        evict nothing; of equal scores the earlier stays. Coming back to an epoch forgets it and
        what came after it.

        Args:
            score: The metric, or a dictionary that has it among others.
            epoch: The epoch or the step, a whole number that rises, and is part of the file's name.
                It is the checkpoint's `epoch` or `step`, if it has one.

        Raises:
            ValueError: The checkpoint is that of another epoch.
            KeyError: The dictionary has no such metric.
            TypeError: A score that is not a number, or a value that cannot be saved, with its
                place; nothing has changed then.
            CheckpointError: A newer run has taken the directory over; or it has checkpoints of
                another program, of which this one has loaded none; or a file of yours has the name
                that this epoch is to have.
            OSError: Of the disk. Either nothing has changed then, or the next save, or the next
                start, completes this one first.
        """
        row = {**self._scores(score), "epoch": _checked_epoch(epoch, checkpoint)}
        self._save(checkpoint, row)
        if not distributed.is_main():
            self._epochs.add(row)

    def save_last(self, checkpoint: Mapping[str, Any]) -> None:
        """Replace `last.pth` alone: in the middle of an epoch, or before the machine is taken.

        >>> manager = CheckpointManager("runs/digits/checkpoints")
        >>> manager.save_last(make_checkpoint("train", 1, nn.Linear(2, 1)))
        """
        self._save(checkpoint, None)

    def wait(self) -> None:
        """Return when all that was processed is on the disk.

        >>> CheckpointManager("runs/digits/checkpoints").wait()

        Raises:
            Exception: The error of a save in the background.
        """
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Wait, and end the thread that writes in the background.

        >>> CheckpointManager("runs/digits/checkpoints").close()
        """
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _save(self, checkpoint: Any, row: Row | None) -> None:
        """Replace the last checkpoint, and do what follows, while the directory is held."""

        def save(plain: Mapping[str, Any]) -> None:
            with self._owned(row), self._committing(row) as note:
                save_checkpoint(plain, self.last_path, note=note)

        def save_waiting(plain: Mapping[str, Any]) -> None:
            try:
                save(plain)
            finally:
                self._waiting.remove(row)

        if self.sharded:
            with timed_save():
                self._save_sharded(checkpoint, row)
        elif not self.background:
            with others_wait() as told:
                if distributed.is_main():
                    save(checkpoint)
                    told.append(f"{self._owner['id']} {self._owner['host']}")
            if told and not (distributed.is_main() or self._seen):
                self._seen = True
                self._look_for(*told[0].split())
        elif self._writer is None:
            return  # not rank 0
        else:
            self._waiting.append(row)
            try:
                self._writer.submit(checkpoint, save_waiting)
            except BaseException:
                self._waiting.remove(row)
                raise

    def _look_for(self, owner: str, host: str) -> None:
        """Warn where the last checkpoint is not the one that rank 0 has written."""

        def there() -> bool:
            with suppress(OSError):  # a name is gone for a moment, on some file systems
                return bool((self._found_owner() or {}).get("id") == owner)
            return False

        if not wait_until(there, run_record.SEEN):
            run_record.warn_apart(self.logdir, host)

    def _save_sharded(self, checkpoint: Any, row: Row | None) -> None:
        on_rank_zero = distributed.rank_zero_only(share=True)
        folder = new_folder(self._shards)
        with ExitStack() as held:  # by rank 0

            def hold() -> Path:
                held.enter_context(self._owned(row))
                claim_shards(Path("shards", folder.name), self.last_path)
                return make_directory(folder)

            def commit() -> None:
                with self._committing(row) as note:
                    commit_shards(index, folder, self.last_path, note)

            folder = on_rank_zero(hold)()
            try:
                index = write_shards(checkpoint, folder)
                on_rank_zero(commit)()
            finally:
                if distributed.is_main():
                    with suppress(OSError):  # what went wrong first is what is told
                        remove_unnamed(self._shards)

    @contextmanager
    def _committing(self, row: Row | None) -> Iterator[Note]:
        """Give the note for a new last checkpoint; when that is in place, do what follows."""
        thorough = self._disturbed or not self._owns
        if thorough:
            self._recover()  # the last save may be half done, or another run's
        self._disturbed = True
        if row is None:
            yield {"owner": self._owner}
        else:
            kept = self._kept(row)
            self._check_free(row["epoch"], kept)
            yield {"row": row, **kept.note(), "owner": self._owner}
        self._owns = True
        if row is not None:
            self._follow(row, kept, thorough)
        self._disturbed = False

    def _check_free(self, epoch: int, kept: _Kept) -> None:
        path = self._path(epoch)
        ours = epoch in map(_epoch, self._epochs.rows) or epoch not in kept
        if path.is_dir() and not path.is_symlink():
            return  # a save says that it is in the way
        if path.exists() and not ours and (self._row_in(path) or {}).get("epoch") != epoch:
            raise CheckpointError(
                f"{path} is not one of this manager's, and epoch {epoch} is to have that name: "
                "move it away; nothing was saved or removed"
            )

    # ---------------------------------------------------------------- what follows from what

    @property
    def _shards(self) -> Path:
        return self.logdir / "shards"

    @property
    def _memory_path(self) -> Path:
        return self.logdir / NAME

    def _path(self, epoch: int) -> Path:
        return self.logdir / checkpoint_name(epoch, self._suffix)

    def _scores(self, score: float | Tensor | Mapping[str, float | Tensor]) -> Row:
        if not isinstance(score, Mapping):
            score = {self.metric: score}
        if self.metric not in score:
            raise KeyError(
                f"the score has no {self.metric!r}, by which {self.logdir} is ranked; "
                f"it has {', '.join(map(repr, score)) or 'nothing'}"
            )
        return {"epoch": 0} | {name: _finite(name, value) for name, value in score.items()}

    def _kept(self, row: Row) -> _Kept:
        """The epochs that are to have a file of their own, once there is a new one."""
        if self.save_n_best is None:
            return _Kept(True)
        later = self._epochs.rows[-1:] and self._epochs.rows[-1]["epoch"] >= row["epoch"]
        old = self._epochs.best(None if later else self.save_n_best)
        few = [known for known in old if known["epoch"] < row["epoch"]]
        best = Epochs(self.metric, self.metric_minimization, [*few, row]).best(self.save_n_best)
        return _Kept(False, frozenset(map(_epoch, best)), self.keep_every)

    # ---------------------------------------------------------------- the directory

    def _follow(self, row: Row, kept: _Kept, thorough: bool) -> None:
        """Add a row, and make the directory follow from it."""
        before = self._epochs.best(self.save_n_best or 0)
        forgotten = self._epochs.add(row)
        try:
            gone = [known for known in before if known["epoch"] not in kept]
            self._settle(kept, forgotten, None if thorough or forgotten else gone)
        except BaseException:
            self._epochs.take_back(forgotten)
            raise

    def _settle(self, kept: _Kept, forgotten: list[Row], gone: list[Row] | None = None) -> None:
        """Make the rest of the directory follow from a new last.pth; to be repeated at will.

        Args:
            forgotten: Rows that the history no longer has.
            gone: Those that have lost their file; default: what the directory says.
        """
        epoch = self._epochs.rows[-1]["epoch"]
        best = self._best_at_hand(_Kept(True) if gone is None else kept)
        # What goes makes room for what comes: names take some, too. What is best is there until
        # best.pth is.
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
            self._metrics_file.forget()
        self._metrics_file.add(self.metric, self.metric_minimization, self._epochs.rows)

    def _remove(
        self,
        kept: _Kept,
        forgotten: list[Row],
        gone: list[Row] | None,
        besides: Path | None = None,
    ) -> None:
        if gone is None:
            found = [path for path, _ in self._epoch_files(exempt=kept)]
        else:
            found = [self._path(row["epoch"]) for row in gone]
        for path in found:
            known = self._row_in(path) in forgotten or self._is_known(path)
            if path != besides and known:  # else it is the user's own
                self._drop(path)

    def _let_be(self, name: Path, source: Path) -> None:
        """Let a name stand for what another one stands for."""
        if _same_data(name, source):
            return
        if self.sharded:
            check_inside(source, self._shards)
            name_shards(name, source.readlink())
        else:
            link_or_copy(source, name)

    def _drop(self, name: Path) -> None:
        if self.sharded:
            name.rename(temporary_name(name))  # which claims what it stands for
        else:
            name.unlink()

    def _epoch_files(self, exempt: Container[object] = ()) -> Iterator[tuple[Path, Row]]:
        """The files that are an epoch's by their names, and by what is in them."""
        for path in list(self.logdir.glob(f"*{self._suffix}")):
            epoch = epoch_of(path.name)
            row = None if epoch is None or epoch in exempt else self._row_in(path)
            if row is not None and row["epoch"] == epoch:
                yield path, row

    def _best_at_hand(self, kept: _Kept) -> Path | None:
        """The file of the best epoch that has one: an earlier best may be gone with its save."""
        named = [(path, self._row_in(path)) for path in (self.best_path, self.last_path)]
        for row in self._epochs.ranked():
            path = self._path(row["epoch"])
            if row["epoch"] in kept and self._row_in(path) == row:
                return path
            for name, own in named:
                if own == row:
                    return name
        return None

    def _note_in(self, path: Path) -> Note:
        """What a file says about itself, if a manager by this metric has written that."""
        ours = path.exists() and (path.is_symlink() or not self.sharded)
        note = (read_note(path) or {}) if ours else {}
        try:
            check(note, _NOTE)
        except ValueError:  # somebody else's
            return {}
        if not _NOTE["owner"].keys() <= note.get("owner", {}).keys():
            return {}
        with_score = is_row(note.get("row")) and self.metric in note["row"]
        return note if with_score else {name: note[name] for name in note if name == "owner"}

    def _row_in(self, path: Path) -> Row | None:
        row: Row | None = self._note_in(path).get("row")
        return row

    def _recover(self) -> None:
        """Finish the save that a killed process left half done."""
        own = {self.last_path.name, self.best_path.name, self._memory_path.name}
        ends = ".json" if self.sharded else (".json", ".pth")  # others are claims
        remove_leftovers(
            self.logdir,
            lambda name: name.endswith(ends) and (name in own or epoch_of(name) is not None),
        )
        self._part_links(own)
        note = self._note_in(self.last_path)
        if self._memory_path.exists() or not self._epochs.rows:  # else we know what it had
            self._epochs = Epochs(self.metric, self.metric_minimization, self._read_rows())
        if "row" not in note:
            return
        row, kept = note["row"], _Kept.of(note)
        written = self._memory_path.exists() and self._epochs.rows[-1:] == [row]
        forgotten = self._epochs.add(row)
        found = {row["epoch"] for _, row in self._epoch_files() if self._epochs.has(row)}
        expected = {epoch for epoch in map(_epoch, self._epochs.rows) if epoch in kept}
        if not written or found != expected:
            self._settle(kept, [] if written else forgotten)

    def _part_links(self, own: set[str]) -> None:
        """Make files of links from one name to another, which a save would write through."""
        for path in [] if self.sharded else self.logdir.iterdir():
            ours = path.name in own or epoch_of(path.name) is not None
            beside = os.path.realpath(path.parent) == str(Path(os.path.realpath(path)).parent)
            if ours and path.is_symlink() and beside:
                replace_link(path) if path.exists() else path.unlink()
            elif ours:
                check_inside(path, self.logdir)

    @contextmanager
    def _owned(self, row: Row | None) -> Iterator[None]:
        """Hold the directory while it changes, if no newer run has taken it over."""
        make_directory(self.logdir)
        with locked_directory(self.logdir):
            shards = [self._shards] if self.sharded else []
            for path in (*shards, self.last_path, self._memory_path):
                check_inside(path, self.logdir)
            self._check_owner(row)
            yield

    def _check_owner(self, row: Row | None) -> None:
        try:
            run_record.check_held(self.logdir)
        except RuntimeError as error:
            raise CheckpointError(str(error)) from None
        owner = self._found_owner() or {}
        by = f"process {owner.get('pid')} on {owner.get('host')}"
        own = owner.get("id") == self._owner["id"]
        newest = None if self._owns or own else self._newest()
        known = newest is None or is_own(owner) or digest_read(newest) is not None
        changed = newest is not None and identity_of(newest) != self._found
        if (self._owns and owner and not own) or (changed and not known):
            raise CheckpointError(
                f"{self.logdir} belongs to a newer run by now ({by}): this one no longer saves "
                "there; stop one of the two, or give each a directory of its own"
            )
        rows = self._epochs.rows
        is_next = row is not None and rows and row["epoch"] == rows[-1]["epoch"] + 1
        if not (known or self.go_on or is_next):
            raise CheckpointError(
                f"{self.logdir} has checkpoints of another program ({by}; {len(rows)} epochs, to "
                f"{rows[-1]['epoch'] if rows else 'none'}), and this one has loaded none of them: "
                "nothing was saved or removed. Load the last one with resume(...) before the first "
                "save; or pass go_on=True to the CheckpointManager; or take another directory"
            )
        if newest is not None and owner and not is_own(owner) and is_alive(owner):
            warnings.warn(
                f"{self.logdir} is taken over from process {owner['pid']}, which is still "
                "running: its next save will be refused",
                stacklevel=7,
            )

    def _newest(self) -> Path | None:
        """The newest checkpoint, under one of the manager's own names."""
        own = (path for path in newest_first(self.logdir) if path.suffix == self._suffix)
        there = (path for path in own if identity_of(path))
        named = (self.last_path, self.best_path)
        return next((path for path in there if path in named or self._is_known(path)), None)

    def _is_known(self, path: Path) -> bool:
        row = self._row_in(path)
        return row is not None and self._epochs.has(row)

    def _found_owner(self) -> dict[str, Any] | None:
        return self._note_in(self.last_path).get("owner")

    def _read_rows(self) -> list[Row]:
        path = self._memory_path
        if not path.exists():  # lost, or not written yet: each file has its own row
            notes = [row for _, row in self._epoch_files()]
            notes += [row for row in map(self._row_in, (self.best_path, self.last_path)) if row]
            known = {row["epoch"]: row for row in notes if self.metric in row}
            return [known[epoch] for epoch in sorted(known)]
        try:
            with naming(path):
                found = read_history(path, inside=self.logdir)
            if found.foreign or not all(found.metric in row for row in found.rows):
                raise ValueError("some of its rows have no score")
        except (ValueError, IsADirectoryError) as error:
            raise ValueError(
                f"{path} was not written by a CheckpointManager, or is damaged; move it away: the "
                "scores are in the checkpoints too"
            ) from error
        if found[:2] != (self.metric, self.metric_minimization):
            raise ValueError(
                f"{path} ranks by {found[0]!r} with metric_minimization={found[1]}, not by "
                f"{self.metric!r} with {self.metric_minimization}; use another log directory"
            )
        return found.rows


class _Kept(NamedTuple):
    """The epochs that have a file of their own; a container of them."""

    all: bool
    some: frozenset[int] = frozenset()
    every: int | None = None

    @classmethod
    def of(cls, note: Note) -> _Kept:
        return cls("kept" not in note, frozenset(note.get("kept", ())), note.get("every"))

    def note(self) -> Note:
        """What a note has room for; where that is not all, nothing is removed for its sake."""
        long = self.all or len(self.some) > _MANY
        return {} if long else {"kept": sorted(self.some), "every": self.every}

    def __contains__(self, epoch: object) -> bool:
        every = self.every and isinstance(epoch, int) and epoch % self.every == 0
        return bool(self.all or epoch in self.some or every)


_epoch: Callable[[Row], int] = itemgetter("epoch")


def _checked_epoch(epoch: Any, checkpoint: Mapping[str, Any]) -> int:
    number = None
    with suppress(TypeError, ValueError, OverflowError):
        number = int(epoch)
    if number is None or number != epoch or not is_epoch(number):
        raise ValueError(f"epoch is {brief(epoch)}; expected a whole number")
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            f"the checkpoint is {brief(checkpoint)}; expected what make_checkpoint gives"
        )
    found: list[Any] = [checkpoint.get("epoch", number), checkpoint.get("step")]
    own, step = (each.item() if hasattr(each, "item") else each for each in found)
    if isinstance(own, int | float) and number not in (own, step):
        raise ValueError(
            f"the checkpoint is that of epoch {own}, and process was told epoch {number}: they "
            "must be the same, or the run would go on from another epoch than its file says; to "
            "rank saves by step, let the checkpoint have it, make_checkpoint(..., step=step)"
        )
    return number


def _same_data(path: Path, other: Path) -> bool:
    """Whether two names stand for the same data: for one file, or for copies."""
    if not path.exists():
        return False
    seal, others = read_seal(path), read_seal(other)
    copied = seal is not None and others is not None and seal.digest == others.digest
    return copied or path.samefile(other)


def _finite(name: str, value: Any) -> float | None:
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the score {name!r} is {value!r}; expected one number") from error
    return number if math.isfinite(number) else None
