"""``regnet-deploy evaluate``: measures accuracy on labeled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import bundle_argument, device_option, json_option, runtime_option
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text, terminal_progress
from regnet_deploy.errors import BundleError

if TYPE_CHECKING:
    from regnet_deploy.evaluation.evaluate import EvaluationResult
    from regnet_deploy.evaluation.metrics import Metrics

#: Rows of the tables of classes and of mistakes.
_LISTED = 12
_CSV = (".csv",)
#: Value of ``--expect`` without a number.
_PUBLISHED = "published"


class _Percent(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.5 on
    """A percentage, or none for the published one."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Parse ``76.2``."""
        if value == _PUBLISHED:
            return _PUBLISHED
        try:
            percent = float(value)
        except ValueError:
            self.fail(
                f"{value!r} is no percentage such as 76.2; to compare with the published accuracy, --expect comes "
                "last or before another option",
                param,
                ctx,
            )
        if not 1 < percent <= 100:  # nan is in no range
            self.fail(f"{value} is not in the range 1<x<=100 (percent)", param, ctx)
        return percent


@click.command()
@bundle_argument
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder with a folder of images for each class, or with test/ or val/ of such folders; of the folder of "
    "training also the images that were held out. Also a CSV file, tar shards or Parquet, as for `train`.",
)
@click.option(
    "--variant",
    metavar="NAME|all",
    multiple=True,
    help="Exported variant to measure beside the weights (may be repeated).  [default: the one that is served]",
)
@click.option("--split", type=click.Choice(["test", "val", "train"]), help="Images to take.  [default: test, else val]")
@click.option(
    "--expect",
    type=_Percent(),
    is_flag=False,
    flag_value=_PUBLISHED,
    metavar="[PERCENT]",
    help="Fail unless the top-1 of the weights agrees with this one.  [without PERCENT: the published one of imported "
    "weights]",
)
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write every answer as CSV.")
@click.option(
    "--mistakes", type=click.Path(path_type=Path), metavar="FILE", help="Draw the worst mistakes: .png, .svg or .pdf."
)
@device_option("auto: cuda if onnxruntime-gpu and a GPU are present.")
@runtime_option("tensorrt runs engines, the others run ONNX variants.")
@json_option
def command(
    bundle_path: str,
    data: Path,
    variant: tuple[str, ...],
    split: str | None,
    expect: Any,
    csv: Path | None,
    mistakes: Path | None,
    device: Any,
    runtime: Any,
    as_json: bool,
) -> None:
    """Measure the weights of a BUNDLE and exported variants on labeled images that had no part in training.

    Prints top-1 and top-5 with 95 % intervals, the share of the largest class, the expected calibration error,
    precision and recall by class, and which classes are confused. Class folders are matched by name and may be a
    subset of the classes; for networks of ImageNet also by synset, or by number as in ImageNet-V2. With the folders
    of ImageNet-A or -R, only their 200 classes compete as answers. The figures are written into the bundle, for its
    card.

    \b
    Example:
      regnet-deploy evaluate --data my-images
      regnet-deploy evaluate my-bundle --data my-images --split test --variant all
      regnet-deploy evaluate --data imagenet/val --expect --mistakes worst.png
      regnet-deploy evaluate --data my-images --expect 93.1
    """
    from regnet_deploy.api.variants import evaluate_accepted
    from regnet_deploy.bundle import open_bundle
    from regnet_deploy.images.dataset_summary import left_out_lines
    from regnet_deploy.output_file import check_output_file
    from regnet_deploy.runtimes.default_variant import default_variant, fallback_note

    if csv:
        check_output_file(csv, _CSV, "a table")
    if mistakes:
        from regnet_deploy.plotting import check_plot_path

        check_plot_path(mistakes)
    bundle = open_bundle(bundle_path)
    check_images = None
    if expect == _PUBLISHED:
        from regnet_deploy.evaluation.published_accuracy import check_comparable, published_top1

        published_top1(bundle)
        check_images = check_comparable
    if variant:
        names = None if "all" in variant else variant
    else:
        names = (default_variant(bundle, device=device, runtime=runtime),) if bundle.manifest.variants else ()
        note = fallback_note(bundle, names[0], device, runtime) if names else None
        if note:
            print_message(note)
    with terminal_progress() as progress:
        result = evaluate_accepted(
            bundle, data, check_images, variants=names, split=split, device=device, runtime=runtime, progress=progress
        )
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(result)
    left_out = left_out_lines("left out", result.images.left_out)
    for line in (*result.images.notes, *left_out, *left_out_lines("cannot be read", result.unreadable)):
        print_message(line)
    _write_files(result, csv, mistakes, bundle.preprocessing)
    from regnet_deploy.evaluation.record import record_evaluation, seen_in_training

    seen = seen_in_training(bundle, result.images.source.root.name, result.images.split)
    if seen:
        print_message(seen)
    try:
        record_evaluation(bundle, result)
    except BundleError as error:
        print_message(f"the figures are not in the bundle: {error}")
    if expect is not None:
        from regnet_deploy.evaluation.published_accuracy import compare_with_expected, compare_with_published

        if isinstance(expect, float):
            print_message(compare_with_expected(bundle, result, expect))
        else:
            print_message(compare_with_published(bundle, result))


def _write_files(result: EvaluationResult, csv: Path | None, mistakes: Path | None, preprocessing: Any) -> None:
    from regnet_deploy.evaluation.output_files import draw_mistakes, write_answers

    if csv:
        write_answers(csv, result)
        print_message(f"wrote {csv}: {len(result.labels):,} images")
    if mistakes:
        drawn = draw_mistakes(mistakes, result, result.evaluations[-1], preprocessing)
        print_message(f"wrote {mistakes}" if drawn else f"{mistakes} was not written: no answer is wrong")


def _print_result(result: EvaluationResult) -> None:
    from regnet_deploy.evaluation.record import evaluation_record

    rows = []
    for each in result.evaluations:
        top1, top5, lost = each.metrics.top1, each.metrics.top5, each.lost
        rows.append(
            (
                each.variant,
                f"{top1.value:.2%}",
                f"{top1.low:.2%} to {top1.high:.2%}",
                "-" if top5 is None else f"{top5.value:.2%}",
                f"{each.metrics.ece:.3f}",
                "-" if lost is None else f"{100 * lost.value:+.2f} ({100 * lost.low:+.2f} to {100 * lost.high:+.2f})",
            )
        )
    figures = result.evaluations[-1].metrics
    columns = ("variant", "top-1", "95 %", "top-5", "calibration error", "points lost (95 %)")
    print_table(f"{figures.images:,} images of {evaluation_record(result).where}", columns, rows)
    share, label = figures.baseline
    verdict = "" if figures.top1.low > share else "; the network is not clearly better than that"
    print_text(f"A constant answer, {label}, is right on {share:.2%} of the images{verdict}.")
    _print_classes(result.evaluations[-1].variant, figures)


def _print_classes(variant: str, figures: Metrics) -> None:
    """Print the classes with the lowest recall, and the most frequent confusions."""
    known = [each for each in figures.classes if each.support]
    worst = sorted(known, key=lambda each: (each.recall or 0.0, -each.support))[:_LISTED]
    title = f"Classes of {variant}" if len(worst) == len(known) else f"Classes of {variant} with the lowest recall"
    rows = [
        (
            each.label,
            f"{each.recall or 0.0:.1%}",
            "-" if each.precision is None else f"{each.precision:.1%}",
            f"{each.support:,}",
            f"{each.answers:,}",
        )
        for each in worst
    ]
    print_table(title, ("class", "recall", "precision", "images", "answers"), rows)
    names = [each.label for each in figures.classes]
    mistakes = [(names[row], names[column], int(count)) for (row, column), count in _off_diagonal(figures).items()]
    if mistakes:
        mistakes.sort(key=lambda each: -each[2])
        print_table(
            "Most frequent confusions",
            ("class", "answer", "images"),
            [(row, column, f"{count:,}") for row, column, count in mistakes[:_LISTED]],
            left=2,
        )


def _off_diagonal(figures: Metrics) -> dict[tuple[int, int], int]:
    rows, columns = figures.confusion.nonzero()
    return {
        (row, column): int(figures.confusion[row, column])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if row != column
    }
