"""Which checkpoints are kept: the last, the best, the best few."""

from __future__ import annotations

import errno
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from batteries import distributed
from batteries._direction import said_direction
from batteries._files import PathLike, Place, locked_directory, make_directory
from batteries._foreign import LONGEST_NAME, brief, is_epoch, is_number
from batteries._numbers import as_number, as_whole
from batteries._preemption import timed_save
from batteries._processes import is_alive, is_own, own_process
from batteries._rundir import record as run_record
from batteries._rundir.history import Row
from batteries._warnings import warn
from batteries.checkpoint._background import BackgroundWriter
from batteries.checkpoint._contents import as_checkpoint
from batteries.checkpoint._directory import Directory, Epochs
from batteries.checkpoint._read_outline import CheckpointError
from batteries.checkpoint._seal import Note, digest_read, identity_of
from batteries.checkpoint._write import save_checkpoint
from batteries.checkpoint._write_shards import (
    claim_shards,
    commit_shards,
    new_folder,
    remove_unnamed,
    write_shards,
)
from batteries.distributed._rank_zero import others_wait


class CheckpointManager:
    """Keep the checkpoints that matter: the last one, the best one, the best few.

    >>> manager = CheckpointManager("runs/digits/checkpoints", metric="accuracy",
    ...                             metric_minimization=False, save_n_best=3)
    >>> checkpoint = make_checkpoint("train", 1, nn.Linear(2, 1))
    >>> manager.process(score=0.93, epoch=1, checkpoint=checkpoint)
    >>> sorted(path.name for path in manager.logdir.iterdir())
    ['best.pth', 'exp_1.pth', 'last.pth', 'metrics.json']

    `exp_{epoch}.pth` are the best few. All names of an epoch are hard links to data that is
    written once. `metrics.json` has the scores of all epochs and is the manager's memory. A new
    manager on the same directory reads it, and completes a save that was interrupted.

    A manager does not replace another program's checkpoints. If the directory has some, the first
    save works only if this program has loaded the last checkpoint, or if its epoch is the one after
    the last saved epoch. A manager removes only checkpoints that `metrics.json` names, so other
    files stay. It follows no symbolic link out of the directory. The directory itself may be a
    link.

    Args:
        logdir: Created when the first checkpoint is written.
        metric: The name of the score that ranks the checkpoints. Default: a loss.
        metric_minimization: Whether lower is better. Needed with `metric`.
        save_n_best: The number of `exp_*.pth` to keep. 0 keeps only `best.pth` and `last.pth`,
            None keeps all.
        keep_every: Keep each epoch that is a multiple of this, too.
        sharded: For states of FSDP2 and other DTensors. Each rank writes its part, so all ranks
            call `process` and `save_last`. The names end in `.dcp` and are symbolic links to
            directories in `shards`, which `torch.distributed.checkpoint` writes;
            `load_checkpoint` reads them on any number of ranks. All ranks must share the storage.
        background: `process` copies the checkpoint and returns; another thread writes it, just
            as safely. Call `wait()` before you read the files. Call `close()` at the end, or use
            the manager in a `with`. The error of a save is raised by the next call.
        go_on: Save although the directory has checkpoints of another program, and this program has
            not loaded the last one.

    Raises:
        TypeError: A metric without its direction, or `save_n_best` or `keep_every` is not a whole
            number.
        ValueError: The directory has the scores of another metric, `metrics.json` is damaged,
            `metric` is "" or "epoch", `save_n_best` is below 0, `keep_every` is below 1, or
            `sharded` and `background` are both true.
        NotADirectoryError: `logdir` is a file.
        PermissionError: A file of the manager in `logdir` is a symbolic link that leads out of
            `logdir`. For some of these files, the error comes with the first save.
    """

    logdir = Place()

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
        if save_n_best is not None:
            save_n_best = as_whole(save_n_best, "save_n_best", 0, ", or None for all")
        if keep_every is not None:
            keep_every = as_whole(keep_every, "keep_every", 1)
        if sharded and background:
            raise ValueError("a sharded checkpoint cannot be saved in the background: choose one")
        if metric is None and metric_minimization is None:
            metric_minimization = True  # a loss
        of = "CheckpointManager" if metric is None else f"CheckpointManager(metric={metric!r})"
        self.logdir = logdir
        self.metric = "loss" if metric is None else metric
        if not isinstance(self.metric, str) or self.metric in ("", "epoch"):
            raise ValueError(f"metric is {brief(metric)}; expected a name, other than 'epoch'")
        self.metric_minimization = said_direction(metric_minimization, of)
        self.save_n_best = save_n_best
        self.keep_every = keep_every
        self.background = background
        self.sharded = sharded
        self.go_on = go_on
        self._owner = {**own_process(), "id": uuid.uuid4().hex}
        self._owns = False  # whether this manager wrote the last.pth that is there
        self._seen = False  # whether rank 0 is known to save into the same directory
        self._disturbed = False  # whether an error has interrupted a save
        self._waiting: list[Row | None] = []  # to be written in the background
        self._writer = BackgroundWriter() if background and distributed.is_main() else None
        if self.logdir.exists() and not self.logdir.is_dir():
            make_directory(self.logdir)  # raises, and says what is in the way
        self._directory = Directory(
            folder=self.logdir,
            metric=self.metric,
            minimization=self.metric_minimization,
            sharded=sharded,
            save_n_best=save_n_best,
            keep_every=keep_every,
        )
        if self.logdir.is_dir() and distributed.is_main():
            with locked_directory(self.logdir):
                try:
                    self._directory.recover()
                    if self.sharded:
                        remove_unnamed(self._directory.shards)
                except OSError as error:  # a read-only directory can still be read
                    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                        raise
                    self._disturbed = True
        elif self.logdir.is_dir():
            self._directory.know_last()
        self._found = identity_of(newest) if (newest := self._directory.newest()) else None

    @property
    def best_path(self) -> Path:
        """Where the best checkpoint is. There is no file before the first finite score."""
        return self._directory.best_path

    @property
    def last_path(self) -> Path:
        """Where the last checkpoint is. There is no file before the first save."""
        return self._directory.last_path

    @property
    def best_score(self) -> float | None:
        """The best score so far; None before the first finite one."""
        best = self._all.best(1)
        return float(best[0][self.metric]) if best else None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The scores of all epochs, in their order. Each is a dict with `epoch` and the scores.

        A score that was not finite, or was 1e300 or more, is NaN.
        """
        return [
            {name: math.nan if value is None else value for name, value in row.items()}
            for row in self._all.rows
        ]

    @property
    def _all(self) -> Epochs:
        # The waiting rows are read first: a row that is written meanwhile is then in both lists.
        waiting = [row for row in self._waiting if row is not None]
        if not waiting:
            return self._directory.epochs
        both = Epochs(self.metric, self.metric_minimization, self._directory.epochs.rows)
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

        Global rank 0 writes. Call `process` on every rank. Without `sharded`, you may also call it
        on rank 0 alone. Ranks that call it wait for rank 0, however long it takes. Ranks that do
        not call it wait in their next collective, up to the timeout of the process group.

        NaN, infinities and numbers from 1e300 on are never best and remove nothing. Of equal
        scores, the earlier is best. If you save an earlier epoch again, the manager forgets the
        old scores of this epoch and of all later ones, and removes their checkpoints.

        Args:
            score: The metric, or a dictionary that has it among others.
            epoch: The epoch or the step, a whole number that rises. It is in the file's name. If
                the checkpoint has an `epoch`, its `epoch` or its `step` must be this number.
            checkpoint: What `make_checkpoint` returns.

        Raises:
            ValueError: The checkpoint has another epoch, the epoch is not a whole number, or the
                scores take more than about 65,000 bytes.
            KeyError: The dictionary has no such metric.
            TypeError: A score that is not a number, or whose name is not a string. Or a value that
                cannot be saved, with its place. Nothing has changed then.
            CheckpointError: A newer run has taken the directory over; or the directory has
                checkpoints of another program, and this program has not loaded the last one; or a
                file of yours has the name that this epoch needs.
            OSError: An error of the disk. If the save had begun to change files, the next save or
                the next manager completes it.
            RuntimeError: The manager saves in the background, and is closed. Or a signal handler
                called this in the middle of a save.
        """
        row = {**self._scores(score), "epoch": _checked_epoch(epoch, checkpoint)}
        saved = self._save(checkpoint, row)
        if saved is not None and not distributed.is_main():
            self._directory.epochs.add(saved)

    def save_last(self, checkpoint: Mapping[str, Any]) -> None:
        """Replace `last.pth` alone: in the middle of an epoch, or before the job is preempted.

        >>> manager = CheckpointManager("runs/digits/checkpoints")
        >>> manager.save_last(make_checkpoint("train", 1, nn.Linear(2, 1)))

        It raises the errors of `process`, except those of the score and the epoch.
        """
        self._save(as_checkpoint(checkpoint), None)

    def wait(self) -> None:
        """Wait until every checkpoint that was passed to the manager is on the disk.

        Without `background`, it returns at once.

        Raises:
            Exception: The error of a save in the background.
        """
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """End the thread that writes in the background. First wait, and raise, as `wait` does."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _scores(self, score: float | Tensor | Mapping[str, float | Tensor]) -> Row:
        if not isinstance(score, Mapping):
            score = {self.metric: score}
        if self.metric not in score:
            raise KeyError(
                f"the score has no {self.metric!r}, by which {self.logdir} is ranked; "
                f"it has {', '.join(map(repr, score)) or 'nothing'}"
            )
        odd = [name for name in score if not isinstance(name, str)]
        if odd:
            raise TypeError(f"the score has the name {brief(odd[0])}; expected a string")
        longest = max(map(len, score))
        if longest > LONGEST_NAME:
            raise ValueError(
                f"a score's name has {longest:,} characters; expected {LONGEST_NAME:,} at most, "
                "because metrics.json would not be read"
            )
        return {"epoch": 0} | {name: _finite(name, value) for name, value in score.items()}

    # ---------------------------------------------------------------- a save

    def _save(self, checkpoint: Any, row: Row | None) -> Row | None:
        """Save; return the row that rank 0 has saved, or None."""

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
                return self._save_sharded(checkpoint, row)
        if not self.background:
            with others_wait("last/" if row is None else f"{row['epoch']}/") as told:
                if distributed.is_main():
                    save(checkpoint)
                    told.append(json.dumps([self._owner["id"], self._owner["host"], row]))
            if not told:
                return None
            if not distributed.is_main():
                owner, host, row = json.loads(told[0])
                if not self._seen:
                    self._seen = True
                    seen = partial(self._is_by, owner)
                    run_record.warn_unless_seen(seen, self.logdir, host)
        elif self._writer is not None:  # rank 0
            self._waiting.append(row)
            try:
                self._writer.submit(checkpoint, save_waiting)
            except BaseException:
                self._waiting.remove(row)
                raise
        return row

    def _is_by(self, owner: str) -> bool:
        """Whether this rank sees a last checkpoint of that owner."""
        return (self._directory.found_owner() or {}).get("id") == owner

    def _save_sharded(self, checkpoint: Any, row: Row | None) -> Row | None:
        on_rank_zero = distributed.rank_zero_only(share=True)
        shards = self._directory.shards
        folder = new_folder(shards)
        with ExitStack() as held:  # by rank 0

            def hold() -> Path:
                held.enter_context(self._owned(row))
                claim_shards(Path("shards", folder.name), self.last_path)
                return make_directory(folder)

            def commit() -> Row | None:
                with self._committing(row) as note:
                    commit_shards(index, folder, self.last_path, note)
                return row

            folder = on_rank_zero(hold)()
            try:
                index = write_shards(checkpoint, folder)
                return on_rank_zero(commit)()
            finally:
                if distributed.is_main():
                    with suppress(OSError):  # the first error is the one to raise
                        remove_unnamed(shards)

    @contextmanager
    def _committing(self, row: Row | None) -> Iterator[Note]:
        """Give the note for a new last checkpoint. After the block, complete the directory."""
        thorough = self._disturbed or not self._owns
        if thorough:
            self._directory.recover()  # the last save may be incomplete, or another run's
        self._disturbed = True
        if row is None:
            yield {"owner": self._owner}
        else:
            kept = self._directory.kept(row)
            self._directory.check_free(row["epoch"], kept)
            yield {"row": row, **kept.note(), "owner": self._owner}
        self._owns = True
        if row is not None:
            self._directory.follow(row, kept, thorough)
        self._disturbed = False

    @contextmanager
    def _owned(self, row: Row | None) -> Iterator[None]:
        """Lock the directory while it changes, unless a newer run has taken it over."""
        make_directory(self.logdir)
        with locked_directory(self.logdir):
            self._directory.check_links()
            self._check_owner(row)
            yield

    def _check_owner(self, row: Row | None) -> None:
        try:
            run_record.check_held(self.logdir)
        except RuntimeError as error:
            raise CheckpointError(str(error)) from None
        owner = self._directory.found_owner() or {}
        by = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "an unknown process"
        own = owner.get("id") == self._owner["id"]
        newest = None if self._owns or own else self._directory.newest()
        known = newest is None or is_own(owner) or digest_read(newest) is not None
        changed = newest is not None and identity_of(newest) != self._found
        if (self._owns and owner and not own) or (changed and not known):
            raise CheckpointError(
                f"{self.logdir} belongs to a newer run by now ({by}): this program no longer saves "
                "there; stop one of the two, or give each a directory of its own"
            )
        rows = self._directory.epochs.rows
        is_next = row is not None and rows and row["epoch"] == rows[-1]["epoch"] + 1
        if not (known or self.go_on or is_next):
            number = "1 epoch" if len(rows) == 1 else f"{len(rows)} epochs"
            epochs = f"; {number}, the last is {rows[-1]['epoch']}" if rows else ""
            raise CheckpointError(
                f"{self.logdir} has checkpoints of another program ({by}{epochs}), and this "
                "program has not loaded the last one: nothing was saved or removed. Load the last "
                "one with resume(...) before the first save; or pass go_on=True to the "
                "CheckpointManager; or take another directory"
            )
        if newest is not None and owner and not is_own(owner) and is_alive(owner):
            warn(
                f"this run takes over {self.logdir} from process {owner['pid']}, which is still "
                "running: the next save of that process will be refused",
            )


def _checked_epoch(epoch: Any, checkpoint: Mapping[str, Any]) -> int:
    try:
        own = as_whole(epoch, "epoch")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not is_epoch(own):
        raise ValueError(f"epoch is {brief(own)}; expected a number between -10^18 and 10^18")
    found: list[Any] = [as_checkpoint(checkpoint).get("epoch", own), checkpoint.get("step")]
    its, step = (each.item() if hasattr(each, "item") else each for each in found)
    if isinstance(its, int | float) and own not in (its, step):
        raise ValueError(
            f"the checkpoint is that of epoch {its}, but process got epoch={own}: they must be "
            "the same, or the run would resume from another epoch than its file says; to rank "
            "saves by step, store the step: make_checkpoint(..., step=step)"
        )
    return own


def _finite(name: str, value: Any) -> float | None:
    found = as_number(value, f"the score {name!r}")
    return found if is_number(found) else None
