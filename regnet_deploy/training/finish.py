"""The end of an unfinished run, at the user's request: its best weights so far are written into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.tracking.trackers import open_trackers
from regnet_deploy.training.checkpoint import Checkpoint, drop_checkpoint, has_checkpoint, load_checkpoint
from regnet_deploy.training.commit import commit_training
from regnet_deploy.training.execution import resolve_device
from regnet_deploy.training.final_test import FinalTest, final_test, find_test_images
from regnet_deploy.training.run_directory import default_directory, open_directory
from regnet_deploy.training.run_identity import architecture_json, is_committed
from regnet_deploy.training.tracked_run import final_values, tracked_run


def finish_training(
    bundle_path: str | Path,
    run_dir: Path | None = None,
    progress: Progress = NoProgress(),
    data: str | Path | None = None,
    track: Sequence[str] = (),
) -> Bundle:
    """End an unfinished run and return the bundle with its best weights so far.

    All that is needed is in the checkpoint. If the run has images to test on and they are still there, the weights are
    measured on them.

    Args:
        bundle_path: folder of the bundle.
        run_dir: run directory; None is beside the bundle.
        progress: receives what is not an error.
        data: the folder of images, if it is not where it was.
        track: trackers that receive the result; see :class:`regnet_deploy.training.train.TrainOptions`.

    Raises:
        BundleError: the bundle is missing, damaged, or not writable.
        DataError: the checkpoint is damaged, or the run directory cannot be written.
        UsageError: there is no unfinished run with a completed epoch, or it is of another network.
    """
    bundle = open_bundle(bundle_path)
    directory = run_dir or default_directory(bundle_path)
    if not directory.is_dir():
        raise UsageError(f"--finish: {bundle.path} has no unfinished run: {directory} does not exist")
    if not has_checkpoint(directory):  # before a lock file is written into what may be no run directory
        raise UsageError(f"--finish: {directory} has no unfinished run")
    with open_directory(directory):
        checkpoint = load_checkpoint(directory)
        if checkpoint is None:
            raise UsageError(f"--finish: {directory} has no unfinished run")
        if not checkpoint.best:
            raise UsageError(
                f"--finish: the unfinished run in {directory} is at {checkpoint.position}: no epoch is completed, so "
                "there are no weights to keep; repeat its command to continue it"
            )
        if is_committed(checkpoint, bundle):
            progress.message("this run has ended and its weights are in the bundle: nothing is left to do")
        else:
            architecture = architecture_json(bundle, len(checkpoint.description.labels))
            now = (architecture, bundle.preprocessing.to_json())
            if (checkpoint.identity["architecture"], checkpoint.identity["preprocessing"]) != now:
                raise UsageError(
                    f"--finish: the unfinished run in {directory} is of another network than {bundle.path} has now: "
                    "give the bundle that it began with, or --restart to drop the run"
                )
            tested = _tested(bundle, checkpoint, data, directory, progress)
            with open_trackers(track, tracked_run(bundle, checkpoint, directory), progress) as trackers:
                bundle = commit_training(bundle, checkpoint, directory, progress, tested)
                trackers.result(final_values(bundle))
        drop_checkpoint(directory)
        return bundle


def _tested(
    bundle: Bundle, checkpoint: Checkpoint, data: str | Path | None, directory: Path, progress: Progress
) -> FinalTest | None:
    """Return the accuracy on the images to test on; None, with a message, if these cannot be found."""
    run = checkpoint.description
    if run.data.test is None:
        return None
    try:
        images = find_test_images(run, checkpoint.identity["recipe"]["seed"], data, directory, progress)
        return final_test(checkpoint, images, resolve_device("auto"), progress)
    except DataError as error:
        progress.message(
            f"the accuracy on the test images is not measured: {error}. When the images are there again, "
            f"`regnet-deploy evaluate{bundle.argument} --data DIR --split test` measures it"
        )
        return None
