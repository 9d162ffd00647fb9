"""The loop: which result is the best, the average of the weights, early stopping, rates that change at every step."""

import dataclasses
from pathlib import Path

import pytest
import torch

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.training import Epoch, LinearProbe, Retry
from regnet_deploy.errors import UsageError
from regnet_deploy.models.weights import FILE, weights_from_bytes
from regnet_deploy.training import loop, train
from regnet_deploy.training import run as training_run
from regnet_deploy.training.checkpoint import RunState
from regnet_deploy.training.evaluate import Evaluation
from regnet_deploy.training.loop import is_best, is_better
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_messages import epoch_line, length_line
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer

RECIPE = Recipe(epochs=4, batch_size=8, crop_area=0.5)  # 3 steps an epoch


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Let the evaluations have these accuracies, and return the weights that are evaluated."""

    def use(*scores: float) -> list[dict[str, torch.Tensor]]:
        left, evaluate, states = iter(scores), training_run.evaluate, []

        def scripted(trainer: Trainer, *rest: object) -> object:
            states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
            return dataclasses.replace(evaluate(trainer, *rest), top1=next(left))

        monkeypatch.setattr(training_run, "evaluate", scripted)
        return states

    return use


@pytest.mark.parametrize(
    ("result", "best", "better"),
    [
        ((0.8, 1.0), (0.7, 0.1), True),
        ((0.7, 0.1), (0.8, 1.0), False),
        ((0.8, 0.4), (0.8, 0.5), True),
        ((0.8, 0.5), (0.8, 0.4), False),
        ((0.8, 0.5), (0.8, 0.5), True),
    ],
)
def test_accuracy_decides_and_between_equals_the_loss_and_then_the_later(
    result: tuple[float, float], best: tuple[float, float], better: bool
) -> None:
    assert is_better(*result, *best) is better


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 5), (4, 6)])
def test_a_run_ends_after_so_many_epochs_without_a_better_one(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, script, patience: int, epochs: int
) -> None:
    script(0.2, 0.5, 0.4, 0.3, 0.1, 0.6)
    recipe = dataclasses.replace(RECIPE, epochs=6, patience=patience)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    training = trained.training
    assert len(training.history) == epochs
    assert training.best.epoch == (6 if epochs == 6 else 2)
    assert (training.early, training.stopped) == (True if epochs < 6 else None, False)
    assert ("ended early: the best is epoch 2, and" in recorded_progress.text) is (epochs < 6)
    assert train.train(bundle.path, data, recipe, options, recorded_progress) == trained  # there is nothing left to do
    assert "already trained like this" in recorded_progress.text


def test_a_run_that_is_killed_before_it_is_committed_ends_early_all_the_same(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(0.2, 0.5, 0.4)
    recipe = dataclasses.replace(RECIPE, patience=1)
    commit = train.commit_training
    with monkeypatch.context() as patch:
        patch.setattr(train, "commit_training", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            train.train(bundle.path, data, recipe, options, recorded_progress)
    assert train.commit_training is commit
    training = train.train(bundle.path, data, recipe, options, recorded_progress).training
    assert (len(training.history), training.best.epoch, training.early) == (3, 2, True)


def test_the_average_is_the_recursion_over_the_weights_after_each_step(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=2, ema_decay=0.75, precise_bn_images=0)
    states, step = [], Trainer.step

    def recorded(self: Trainer, *arguments: object) -> object:
        result = step(self, *arguments)
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return result

    monkeypatch.setattr(Trainer, "step", recorded)
    evaluated = script(0.9, 0.3)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    wanted = states[0]
    for count, state in enumerate(states[1:3], start=1):
        kept = min(0.75, (1 + count) / (10 + count))  # the statistics are averaged too
        wanted = {name: wanted[name] * kept + state[name] * (1 - kept) for name in wanted}
    assert len(states) == 6
    for name, value in weights_from_bytes(trained.read(FILE)).items():
        assert torch.equal(value, evaluated[0][name])
        if value.is_floating_point():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    best = trained.training.best
    assert (best.epoch, best.averaged, best.val_top1, best.name) == (1, True, 0.9, "epoch 1, averaged")
    assert [(epoch.val_top1, epoch.averaged) for epoch in trained.training.history] == [(0.9, True), (0.3, True)]
    assert best.val_loss == trained.training.history[0].val_loss


def test_the_average_has_precise_statistics_of_its_own_weights(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, script
) -> None:
    evaluated = script(0.9)
    recipe = dataclasses.replace(RECIPE, epochs=1, ema_decay=0.9, lr=5.0, precise_bn_images=24)
    train.train(bundle.path, data, recipe, options, recorded_progress)
    (averaged,) = evaluated  # the stem is linear: the variance of its output goes with the square of its weights
    variance = averaged["stem.bn.running_var"] / averaged["stem.conv.weight"].square().sum((1, 2, 3))
    assert 0.01 < variance.median() < 100
    assert averaged["stem.bn.num_batches_tracked"] == 3  # of the three batches alone


def test_without_a_decay_there_is_no_average(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    training = train.train(bundle.path, data, RECIPE, options, recorded_progress).training
    assert training.best.averaged is None
    assert all(epoch.averaged is None for epoch in training.history)
    assert "average" not in str(training.to_json())


def test_a_warm_up_in_steps_changes_the_rate_at_every_step(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], Trainer.step

    def recorded(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        rates.append(rate)
        return step(self, batch, rate, at)

    monkeypatch.setattr(Trainer, "step", recorded)
    recipe = dataclasses.replace(RECIPE, warmup_steps=2)
    train.train(bundle.path, data, recipe, options, recorded_progress)
    assert rates == [recipe.fitted(30).learning_rate(epoch, step, 3) for epoch in range(4) for step in range(3)]
    assert len(set(rates)) == 12


def test_a_warm_up_as_long_as_the_run_is_refused(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    recipe = dataclasses.replace(RECIPE, warmup_steps=12)
    with pytest.raises(UsageError, match="warm-up steps must be 0 to 11 in a run of 12, got 12"):
        train.train(bundle.path, data, recipe, options, recorded_progress)


EPOCH = Epoch(
    epoch=1,
    lr=0.1,
    train_loss=1.0,
    train_top1=0.5,
    val_loss=0.4,
    val_top1=0.9,
    val_images=20,
    images_per_s=1.0,
    seconds=1.0,
)


@pytest.mark.parametrize(
    ("images", "top1", "loss", "best"),
    [
        (20, 0.90, 0.1, False),  # as many right as the probe
        (20, 0.95, 0.1, False),  # one more
        (20, 1.00, 0.9, True),
        (200, 0.90, 0.4, True),
        (200, 0.90, 0.6, False),
        (200, 0.905, 0.9, True),
    ],
)
def test_of_few_validation_images_an_epoch_has_to_recognize_two_more_than_the_probe(
    images: int, top1: float, loss: float, best: bool
) -> None:
    probe = LinearProbe(val_top1=0.9, val_loss=0.5, val_images=images, train_images=80, l2=0.1, seconds=1.0)
    assert is_best(RunState(probe=probe), Evaluation(loss, top1, images, ()), averaged=True) is best


@pytest.mark.parametrize(
    ("images", "top1", "best"), [(36, 0.50, True), (36, 15.0 / 36, True), (36, 14.0 / 36, False), (200, 0.49, False)]
)
def test_from_random_weights_the_last_epoch_counts_unless_few_validation_images_speak_against_it(
    images: int, top1: float, best: bool
) -> None:
    first = EPOCH.replace(val_top1=0.5, val_images=images)
    state = RunState(history=[first], best_epoch=1)
    assert is_best(state, Evaluation(0.9, top1, images, ()), averaged=True) is best
    assert is_best(state, Evaluation(0.9, top1, images, ()), averaged=False) is False


def test_between_epochs_few_validation_images_decide_as_many_do() -> None:
    probe = LinearProbe(val_top1=0.5, val_loss=0.5, val_images=20, train_images=80, l2=0.1, seconds=1.0)
    assert is_best(RunState(), Evaluation(9.0, 0.0, 20, ()), averaged=True)
    first = EPOCH
    state = RunState(probe=probe, history=[first], best_epoch=1)
    assert is_best(state, Evaluation(0.3, 0.9, 20, ()), averaged=True)
    assert not is_best(state, Evaluation(0.5, 0.9, 20, ()), averaged=True)


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch):
    """Let steps of a rate above 0.004 have a loss that is not finite."""
    step = Trainer.step

    def limited(self: Trainer, batch: object, rate: float, at: tuple[int, int]) -> object:
        result = step(self, batch, rate, at)
        return result._replace(loss=torch.tensor(float("nan"))) if rate > 0.004 else result

    monkeypatch.setattr(Trainer, "step", limited)


DIVERGES = dataclasses.replace(
    RECIPE, lr=0.1, warmup_epochs=0, ema_decay=0.5, retries=1
)  # 0.00625 for the batches of 8


@pytest.mark.usefixtures("diverging")
def test_a_run_that_diverges_goes_back_and_has_a_quarter_of_the_rate(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    trained = train.train(bundle.path, data, DIVERGES, options, recorded_progress)
    assert trained.training.retries == (Retry(epoch=1, lr=0.025, reason="the loss was not finite"),)
    assert "epoch 1: the loss was not finite: back to " in recorded_progress.text
    assert len(trained.training.history) == DIVERGES.epochs
    weights = trained.read(FILE)
    recipe = dataclasses.replace(DIVERGES, lr=0.025, retries=0)
    lower = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert weights == lower.read(FILE)  # nothing is left of the steps that diverged


@pytest.mark.usefixtures("diverging")
def test_a_run_without_a_retry_left_ends(bundle: Bundle, data: Path, options: TrainOptions, recorded_progress) -> None:
    with pytest.raises(UsageError, match="training diverged, the bundle is unchanged; give a lower --lr"):
        train.train(bundle.path, data, dataclasses.replace(DIVERGES, lr=0.5), options, recorded_progress)
    assert not bundle.is_trained


@pytest.mark.usefixtures("diverging")
def test_a_run_that_went_back_continues_to_the_bit(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.train(bundle.path, data, DIVERGES, options, recorded_progress)
    often, message = dataclasses.replace(options, checkpoint_s=0, restart=True), recorded_progress.message

    def stopped(text: str) -> None:
        message(text)
        if text.startswith("epoch 2/"):
            raise KeyError

    monkeypatch.setattr(recorded_progress, "message", stopped)
    with pytest.raises(KeyError):
        train.train(bundle.path, data, DIVERGES, often, recorded_progress)
    monkeypatch.setattr(recorded_progress, "message", message)
    continued = train.train(bundle.path, data, DIVERGES, options, recorded_progress)
    assert "resuming at epoch 2 step 3" in recorded_progress.text
    assert continued.training.retries == whole.training.retries
    assert continued.files[FILE].sha256 == whole.files[FILE].sha256


@pytest.fixture
def learning_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations be worse than the constant answer: of 3 classes it has 1/3 and ln 3 = 1.10."""
    evaluate = training_run.evaluate

    def constant(*arguments: object) -> object:
        return dataclasses.replace(evaluate(*arguments), top1=1 / 3, loss=1.2)

    monkeypatch.setattr(training_run, "evaluate", constant)


@pytest.mark.usefixtures("learning_nothing")
def test_a_run_that_has_learned_nothing_in_a_fifth_of_its_steps_goes_back_and_has_as_many_again(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_FEWEST_STEPS", 1)
    recipe = dataclasses.replace(RECIPE, epochs=8, lr=0.16, retries=3)  # a fifth of 8 epochs: in the second
    training = train.train(bundle.path, data, recipe, options, recorded_progress).training
    reason = "it was no better than a constant answer"
    assert training.retries == tuple(
        Retry(epoch=epoch, lr=lr, reason=reason) for epoch, lr in ((3, 0.04), (5, 0.01), (7, 0.0025))
    )


@pytest.mark.usefixtures("learning_nothing")
@pytest.mark.parametrize(
    ("sampling", "right", "learned"), [("balanced", 2, True), ("balanced", 1, False), ("uniform", 2, False)]
)
def test_a_run_that_makes_up_for_small_classes_has_learned_what_is_right_in_the_mean_over_classes(
    bundle: Bundle,
    data: Path,
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
    right: int,
    learned: bool,
) -> None:
    """Always answering the largest class is right for a third of the classes."""
    constant = training_run.evaluate

    def of_classes(*arguments: object) -> object:
        return dataclasses.replace(constant(*arguments), by_class=((96, 0), (3, 3 * (right - 1)), (1, 1)))

    monkeypatch.setattr(training_run, "evaluate", of_classes)
    monkeypatch.setattr(loop, "_FEWEST_STEPS", 1)
    recipe = dataclasses.replace(RECIPE, epochs=4, retries=1, sampling=sampling)
    training = train.train(bundle.path, data, recipe, options).training
    assert (not training.retries) is learned
    assert training.history[0].val_class_top1 == pytest.approx(right / 3)


@pytest.mark.parametrize(
    ("mean", "said"), [(None, "top-1 95.00% *;"), (0.812, "top-1 95.00% (mean over classes 81.20%) *;")]
)
def test_an_epoch_says_the_mean_over_classes_of_unequal_size(mean: float | None, said: str) -> None:
    assert said in epoch_line(EPOCH.replace(val_top1=0.95, val_class_top1=mean), 4, RunState(best_epoch=EPOCH.epoch))


@pytest.mark.usefixtures("learning_nothing")
def test_a_short_run_that_has_not_learned_yet_goes_on(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    recipe = dataclasses.replace(RECIPE, retries=3)  # 12 steps
    assert not train.train(bundle.path, data, recipe, options, recorded_progress).training.retries


def test_the_last_epoch_has_the_steps_that_are_left(
    bundle: Bundle, data: Path, options: TrainOptions, recorded_progress
) -> None:
    recipe = dataclasses.replace(RECIPE, steps=7)
    training = train.train(bundle.path, data, recipe, options, recorded_progress).training
    assert (training.recipe["steps"], training.recipe["epochs"], len(training.history)) == (7, 3, 3)
    assert training.early is None


@pytest.mark.parametrize(
    ("seconds", "minutes", "said"),
    [(90.0, None, "about 2.5 hours"), (5.0, None, None), (9.0, None, "about 15 minutes"), (90.0, 5.0, None)],
)
def test_a_long_run_says_so_after_its_first_epoch(seconds: float, minutes: float | None, said: str | None) -> None:
    line = length_line(RunState(history=[EPOCH.replace(seconds=seconds)]), 100, minutes)
    assert (line is None) is (said is None)
    assert said is None or said in line


def test_one_step_is_one_step_and_two_of_a_few_images_are_not_called_a_quarter(
    bundle: Bundle, put_images, tmp_path: Path, options: TrainOptions, recorded_progress
) -> None:
    put_images(tmp_path / "few", 2)
    train.train(bundle.path, tmp_path / "few", {"steps": 1}, options, recorded_progress)
    assert "1 epoch (1 step), 0 steps for warm-up, in batches of 2, learning rate" in recorded_progress.text
