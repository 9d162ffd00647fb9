"""The end of an unfinished run, at the user's request: its best weights so far are written into the bundle."""

from __future__ import annotations

from pathlib import Path

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.checkpoint import drop_checkpoint, load_checkpoint
from regnet_deploy.training.commit import commit_training
from regnet_deploy.training.run_directory import default_directory, open_directory
from regnet_deploy.training.run_identity import architecture_json, is_committed


def finish_training(bundle_path: str | Path, run_dir: Path | None = None, progress: Progress = NoProgress()) -> Bundle:
    """End an unfinished run and return the bundle with its best weights so far.

    All that is needed is in the checkpoint: neither the images nor the options of the run are.

    Args:
        bundle_path: folder of the bundle.
        run_dir: run directory; None is beside the bundle.
        progress: receives what is not an error.

    Raises:
        BundleError: the bundle is missing, damaged, or not writable.
        DataError: the checkpoint is damaged, or the run directory cannot be written.
        UsageError: there is no unfinished run with a completed epoch, or it is of another network.
    """
    bundle = open_bundle(bundle_path)
    directory = run_dir or default_directory(bundle_path)
    if not directory.is_dir():
        raise UsageError(f"--finish: {bundle.path} has no unfinished run: {directory} does not exist")
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
            bundle = commit_training(bundle, checkpoint, directory, progress)
        drop_checkpoint(directory)
        return bundle
