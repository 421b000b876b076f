"""Copies of complete checkpoints at a URL: parts first, marker last, every file compared with the index."""

import logging
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import INDEX_NAME, MARK_NAME, DamagedError, Index
from toolkit.errors import CheckpointError, StorageError

log = logging.getLogger(__name__)


def upload_checkpoint(checkpoint_dir: Path, url: str) -> str:
    """Copy a complete checkpoint below a URL, or find that it is there.

    Returns:
        Where it is; readers trust it once its marker is there, which is written last.

    Raises:
        CheckpointError: the local one is partial, or a part is missing.
        StorageError: a part is damaged, or could not be copied; what was copied is not trusted.
    """
    index = layout.read_index(checkpoint_dir)
    if wrong := layout.check_sizes(checkpoint_dir, index.parts):
        raise DamagedError(f"{wrong[0]}\n  the index of {checkpoint_dir} says so\n  delete or rename that directory")
    target = storage.join(url, checkpoint_dir.name)
    local_index = storage.read_file(str(checkpoint_dir / INDEX_NAME))
    if storage.exists(storage.join(target, MARK_NAME)):
        if storage.read_file(storage.join(target, INDEX_NAME)) == local_index:
            return target
        delete_remote(target)  # the step was done again after a rollback
    _copy_parts(str(checkpoint_dir), target, index)
    storage.write_atomic(storage.join(target, INDEX_NAME), local_index)
    storage.write_atomic(storage.join(target, MARK_NAME), layout.render_mark(local_index))
    log.info("uploaded %s", target)
    return target


def list_remote(url: str) -> dict[int, str]:
    """List the checkpoints below a URL that are marked and have all their files, by step, oldest first."""
    sizes = storage.file_sizes(url)
    marked = [name.removesuffix(f"/{MARK_NAME}") for name in sizes if name.endswith(f"/{MARK_NAME}")]
    steps = {step: name for name in marked if (step := layout.step_of(name)) is not None}
    return {step: storage.join(url, steps[step]) for step in sorted(steps) if _is_whole(url, steps[step], sizes)}


def download_checkpoint(checkpoint_url: str, checkpoints_dir: Path) -> Path:
    """Copy a checkpoint into the directory of a run's checkpoints.

    Returns:
        Its directory, complete and compared with the index.

    Raises:
        CheckpointError: it is partial, or its index is damaged.
        StorageError: a part is damaged, or it could not be copied; nothing complete is left.
    """
    index = _read_index(checkpoint_url)
    partial = layout.partial_dir(checkpoints_dir, step=index.step, token=uuid.uuid4().hex[:8])
    _copy_parts(checkpoint_url, str(partial), index)
    layout.write_index(partial, index)
    final = layout.step_dir(checkpoints_dir, step=index.step)
    if final.exists():  # left without its marker, or the caller wants this one instead
        layout.delete(final)
    storage.rename(str(partial), str(final))
    return final


def delete_remote(checkpoint_url: str) -> None:
    """Delete a checkpoint, its marker first, so that a half-deleted one is never trusted."""
    storage.remove_tree(storage.join(checkpoint_url, MARK_NAME))
    storage.remove_tree(checkpoint_url)


class Mirror:
    """Keeps a run's newest checkpoints at a URL too, copied in the background; rank 0 has one. Close it."""

    def __init__(self, url: str, checkpoints_dir: Path, *, keep: int, keep_every: int | None) -> None:
        self._url = url
        self._dir = checkpoints_dir
        self._keep = keep
        self._keep_every = keep_every
        self._executor = ThreadPoolExecutor(1, "upload")
        self._in_work: tuple[int, Future[None]] | None = None
        self._restored: set[int] = set()

    @property
    def step_in_work(self) -> int | None:
        """The step whose checkpoint is being read, and must stay until it is copied."""
        return None if self._in_work is None or self._in_work[1].done() else self._in_work[0]

    def restore(self, *, up_to: int | None) -> None:
        """Bring the newest copy here where none is as new: after the directory, or a checkpoint in it, was lost.

        Copies of steps after `up_to` are left alone. One that is damaged or cannot be had is passed over with a
        warning, as long as there is one to go on from.

        Raises:
            CheckpointError: all copies are damaged, and there is none here.
            StorageError: none can be had, and there is none here.
        """
        steps = [step for step in layout.list_steps(self._dir) if up_to is None or step <= up_to]
        here = max(steps, default=-1)
        trouble: CheckpointError | StorageError | None = None
        try:
            remote = list_remote(self._url)
        except StorageError as error:
            remote, trouble = {}, error
        for step, url in reversed(remote.items()):
            if step <= here:
                return
            if step in self._restored or (up_to is not None and step > up_to):
                # One that was restored was found damaged again: this disk is no place for it.
                continue
            try:
                log.info("restoring %s", url)
                download_checkpoint(url, self._dir)
                self._restored.add(step)
                return
            except (CheckpointError, StorageError) as error:
                log.warning("%s is not restored: %s", url, error)
                trouble = error
        if trouble is not None and here < 0:
            raise trouble
        if trouble is not None:
            log.warning("going on from step %d: %s", here, trouble)

    def upload(self, step: int) -> None:
        """Copy a checkpoint, unless the one before is still on its way: the next one will be newer."""
        if self.step_in_work is not None:
            log.warning("step %d is not uploaded: step %d is still on its way", step, self.step_in_work)
            return
        self._in_work = (step, self._executor.submit(self._copy, step))

    def delete_newer(self, step: int) -> None:
        """Delete the copies of later steps, after what is on its way: they would be taken for the run's newest.

        Raises:
            StorageError: they could not be deleted.
        """
        self._executor.submit(self._delete_newer, step).result()

    def close(self, newest_step: int | None) -> None:
        """Wait for what is on its way, and copy the newest one where it was passed over."""
        self._executor.shutdown()
        if newest_step is not None and (self._in_work is None or self._in_work[0] != newest_step):
            self._copy(newest_step)

    def _delete_newer(self, step: int) -> None:
        for newer, url in list_remote(self._url).items():
            if newer > step:
                delete_remote(url)

    def _copy(self, step: int) -> None:
        try:
            upload_checkpoint(layout.step_dir(self._dir, step=step), self._url)
            remote = list_remote(self._url)
            for old in layout.doomed_steps(list(remote), keep=self._keep, keep_every=self._keep_every):
                delete_remote(remote[old])
        except (StorageError, CheckpointError, FileNotFoundError) as error:
            log.warning("step %d is not uploaded; training goes on: %s", step, error)  # the local copy is whole


def _copy_parts(source: str, target: str, index: Index) -> None:
    sums = {part.path: part.xxh3 for part in index.parts}
    try:
        storage.copy_files(source, target, list(sums), xxh3=sums)
    except FileNotFoundError as error:
        raise DamagedError(f"{error}\n  the index of {source} names it\n  use another checkpoint") from error


def _read_index(checkpoint_url: str) -> Index:
    path = storage.join(checkpoint_url, INDEX_NAME)
    try:
        mark = storage.read_file(storage.join(checkpoint_url, MARK_NAME))
        return layout.parse_index(storage.read_file(path), mark=mark, origin=path)
    except FileNotFoundError as error:
        raise DamagedError(
            f"{checkpoint_url} is no complete checkpoint\n  it lacks {MARK_NAME} or {INDEX_NAME}\n  use another one"
        ) from error


def _is_whole(url: str, name: str, sizes: Mapping[str, int]) -> bool:
    try:
        index = _read_index(storage.join(url, name))
    except CheckpointError as error:
        log.warning("passed over %s: %s", storage.join(url, name), error)
        return False
    wrong = [part.path for part in index.parts if sizes.get(f"{name}/{part.path}") != part.num_bytes]
    if wrong:
        log.warning("passed over %s: %s missing or cut off", storage.join(url, name), ", ".join(wrong))
    return not wrong
