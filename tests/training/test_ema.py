"""The average of the weights: by hand, in the masks at every event, and saved and resumed bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.cli.main import main
from dynsparse.config.recipe import EmaSettings
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet
from dynsparse.runtime import Worker
from dynsparse.tools import export
from dynsparse.training.checkpoint.agreement import first_problem
from dynsparse.training.checkpoint.format import read
from dynsparse.training.ema import Ema
from dynsparse.training.evaluate import Evaluation, Evaluations
from dynsparse.training.progress import Progress
from dynsparse.training.trainer import Trainer
from pipelines.common.epochs import EpochTable
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

EMA = {"decay": 0.75}
DSR = runs.BASE["method"]
METHODS: list[dict[str, Any]] = [
    DSR,
    {"name": "rigl", "period": 2},
    {"name": "deepr"},
    {"name": "set", "period": 2, "fraction": 0.3},
]


def config(method: dict[str, Any] = DSR, train: dict[str, Any] | None = None, **ema: Any) -> RunConfig:
    return runs.config(method=method, train={"ema": {**EMA, **ema}, **(train or {})})


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def average_of(trainer: Trainer) -> torch.nn.Module:
    assert trainer.ema is not None
    return trainer.ema.model


def trained(settings: RunConfig, steps: int) -> tuple[Trainer, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return the trainer, and weights and averages before the first step and after each."""
    trainer = runs.trainer(settings)
    weights, averages = [tensors(trainer.model)], [tensors(average_of(trainer))]
    epoch = trainer.data.train.epoch()
    for _ in range(steps):
        trainer.train_step(next(epoch))
        weights.append(tensors(trainer.model))
        averages.append(tensors(average_of(trainer)))
    return trainer, weights, averages


def test_by_hand_without_reallocation() -> None:
    """A <- 0.75 a + 0.25 w for parameters and BatchNorm's statistics alike; batches are counted, not averaged."""
    _, weights, averages = trained(config({"name": "static"}), 4)
    assert_same(averages[0], weights[0])
    for before, now, average in zip(averages[:-1], weights[1:], averages[1:], strict=True):
        for name, value in average.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * now[name], rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(value, now[name]) and value == now[name]


def test_it_waits_copies_and_ramps() -> None:
    """Updates at steps 2, 4, 6, 8. A copy for half an epoch of 8 steps, then decays of 1/10 and 2/11."""
    _, weights, averages = trained(config({"name": "static"}, every_steps=2, start_epoch=0.5, ramp=True), 8)
    assert_same(averages[1], averages[0])
    for step in (2, 4):
        assert_same(averages[step], weights[step])
    assert_same(averages[5], averages[4])
    for step, decay in ((6, 1 / 10), (8, 2 / 11)):
        name = "fc2.weight"
        expected = decay * averages[step - 1][name] + (1 - decay) * weights[step][name]
        torch.testing.assert_close(averages[step][name], expected, rtol=1e-5, atol=1e-7)


def test_it_copies_in_epochs_of_any_length() -> None:
    """Epochs of 2, 2, 5 and 5 steps: the fourth is at 0.4 of its way after 2 + 2 + 5 + 2 steps."""
    model = torch.nn.Linear(2, 2)
    settings = EmaSettings(start_epoch=3.4, decay=0.5)
    ema = Ema(settings, model, MaskSet(model, [], {}), EpochTable(((0, 2), (2, 5))))
    for step in range(1, 15):
        with torch.no_grad():
            model.weight.add_(1)
        ema.follow(step)
        average: torch.nn.Linear = ema.model  # type: ignore[assignment]
        assert torch.equal(average.weight, model.weight) == (step <= 11), step


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
@pytest.mark.parametrize("every", [1, 3])
def test_it_is_0_outside_the_masks_after_every_step(method: dict[str, Any], every: int) -> None:
    """Inside it goes on. A dropped weight is cut though no update is due, and begins at 0 where it grows again."""
    trainer = runs.trainer(config(method, every_steps=every))
    average = dict(average_of(trainer).named_parameters())
    epoch, cut, grown = trainer.data.train.epoch(), 0, 0
    for _ in range(8):
        before = {layer.name: (layer.mask, average[layer.name].clone()) for layer in trainer.masks}
        trainer.train_step(next(epoch))
        for layer in trainer.masks:
            value, (mask, old) = average[layer.name], before[layer.name]
            assert not value[~layer.mask].any()
            assert int(value.count_nonzero()) <= layer.active_weights
            cut += int(old[mask & ~layer.mask].count_nonzero())
            new = layer.mask & ~mask
            grown += int(new.sum())
            updated = trainer.progress.step % every == 0
            expected = 0.25 * layer.weight.detach()[new] if updated else torch.zeros(int(new.sum()))
            torch.testing.assert_close(value[new], expected, rtol=1e-6, atol=0)
    trainer.masks.check()
    assert cut and grown


def test_skipped_steps_change_no_average_but_their_reallocations_cut_it() -> None:
    trainer = runs.trainer(config({"name": "set", "period": 1, "fraction": 0.3}))
    ((images, labels),) = next(trainer.data.train.epoch())
    trainer.train_step([(images, labels)])
    before, masks = tensors(average_of(trainer)), {layer.name: layer.mask for layer in trainer.masks}
    trainer.train_step([(images * torch.nan, labels)])
    assert trainer.progress.skipped_steps == 1
    for layer in trainer.masks:
        before[layer.name] *= layer.mask
        assert not torch.equal(layer.mask, masks[layer.name])
    assert_same(tensors(average_of(trainer)), before)


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_resumed_it_ends_alike(stop: int) -> None:
    settings = config(every_steps=2, ramp=True, best_by="ema")
    whole, half = (state_after(Worker(), settings, None, at) for at in (None, stop))
    assert half["ema"]["updates"] == stop // 2
    assert half["ema"]["weights"]["fc1.weight"].shape == half["weights"]["fc1.weight"].shape
    half["progress"]["seconds"] = 0.0
    assert_same(state_after(Worker(), settings, half, None), whole)


def digest_of_average(worker: Worker, settings: RunConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trainer = runs.trainer(settings, worker)
    trainer.fit()
    average = average_of(trainer)
    return dict(average.named_parameters()), dict(average.named_buffers())


@pytest.mark.parametrize("workers", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_keep_the_same_average_and_resume_it(workers: int) -> None:
    """Mixed samples go on alike too."""
    settings = config(train={"epochs": 1, "mixing": {"mixup_alpha": 0.5, "cutmix_alpha": 1.0, "draw": "pair"}})
    first, *others = run_distributed(digest_of_average, workers, settings)
    for other in others:  # The statistics too: an evaluation has averaged them.
        assert_same(other, first)
    whole, half = (run_distributed(state_after, workers, settings, None, at)[0] for at in (None, 5))
    half["progress"]["seconds"] = 0.0
    assert_same(run_distributed(state_after, workers, settings, half, None)[0], whole)


def altered(worker: Worker, settings: RunConfig) -> dict[str, Tensor]:
    trainer = runs.trainer(settings, worker)
    epoch = trainer.data.train.epoch()
    trainer.train_step(next(epoch))
    if worker.rank == 1:  # A number differs, from which the average learns.
        with torch.no_grad():
            layer = trainer.masks.layers[0]
            layer.put_(layer.weight, layer.active[:1], torch.ones(1, 1))
            trainer.ema.follow(2)  # type: ignore[union-attr]
    for _ in range(2):
        trainer.train_step(next(epoch))
    assert trainer.progress.desyncs_repaired == 1
    return tensors(average_of(trainer))


def test_a_repair_mends_the_average_too() -> None:
    settings = runs.config(train={"ema": EMA}, distributed={"on_desync": "repair"})
    first, second = run_distributed(altered, 2, settings)
    parameters = [name for name in first if "running" not in name]
    assert_same({name: second[name] for name in parameters}, {name: first[name] for name in parameters})


def test_without_decay_it_is_the_model_evaluated_twice() -> None:
    trainer = runs.trainer(config(decay=0.0))
    for step in trainer.data.train.epoch():
        trainer.train_step(step)
    results = trainer.evaluate()
    assert results.ema is not None and results.ema.test == results.test
    assert results.ema.validation is None and results.ema.train is None


def test_tied_weights_are_averaged_too() -> None:
    _, weights, averages = trained(config({"name": "tied"}), 2)
    assert any("parametrizations" in name for name in averages[0])
    name = next(name for name in averages[0] if name.endswith("original"))
    torch.testing.assert_close(averages[2][name], 0.75 * averages[1][name] + 0.25 * weights[2][name])


def test_the_best_epoch_is_chosen_by_either() -> None:
    def of(top1: float) -> Evaluation:
        return Evaluation(1.0, top1, top1, 10)

    for best_by, expected in (("model", [True, True, False]), ("ema", [True, False, True])):
        progress, found = Progress(), []
        for mine, average in ((50.0, 40.0), (60.0, 30.0), (55.0, 70.0)):
            results = Evaluations(of(mine), ema=Evaluations(of(average)), best_by=best_by)
            found.append(progress.take(results))
        assert found == expected
        assert progress.best_top1 == progress.test_top1_at_best == (60.0 if best_by == "model" else 70.0)
        assert (progress.test_top1, progress.ema_test_top1, progress.best_by) == (55.0, 70.0, best_by)
    progress.take(Evaluations(of(52.0)))  # A run that goes on without an average has no figures of one.
    assert (progress.test_top1, progress.ema_test_top1, progress.ema_validation_top1) == (52.0, None, None)


def test_on_or_off_the_model_is_the_same() -> None:
    plain, averaged = (runs.trainer(settings) for settings in (runs.config(), config()))
    ours, theirs = plain.fit(), averaged.fit()
    assert (ours.weight_digest, ours.mask_digest) == (theirs.weight_digest, theirs.mask_digest)
    assert ours.ema_test_top1 is None and theirs.ema_test_top1 is not None
    saved = plain.run.save([plain.run.of_this_rank()])
    assert "ema" not in saved and "ema_buffers" not in saved["ranks"][0]


def test_another_choice_of_the_best_is_refused_at_a_resume() -> None:
    saved = state_after(Worker(), config(best_by="ema"), None, 3)
    for settings in (config(), runs.config()):
        with pytest.raises(UserError, match=r"made with train.ema.best_by ema, this run has model; resume with the"):
            runs.trainer(settings).load(saved)


def test_an_average_may_begin_or_end_at_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    saved = state_after(Worker(), runs.config(), None, 3)
    trainer = runs.trainer(config())
    trainer.load(saved)
    assert_same(tensors(average_of(trainer)), tensors(trainer.model))
    assert "has no average of the weights (train.ema): it begins at the weights of now" in caplog.text
    saved = state_after(Worker(), config(), None, 3)
    trainer = runs.trainer(runs.config())
    trainer.load(saved)
    assert "ema" not in trainer.run.save([trainer.run.of_this_rank()])


def test_an_average_that_reaches_beyond_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    trainer = runs.trainer(config(decay=0.99, train={"epochs": 1}))
    trainer.fit()
    assert "train.ema averages over about 100 steps, and the run has 8: it would stay near" in caplog.text


@pytest.mark.parametrize(
    ("train", "ema", "said"),
    [
        (
            {"epochs": 1},
            {"every_steps": 9, "ramp": True},
            "every_steps is 9, and the run has 8 steps: the average would",
        ),
        ({"epochs": 2, "start_epoch": 1}, {"every_steps": 15}, "averages over about 30 steps, and the run has 8:"),
        (
            {"epochs": 2, "start_epoch": 1},
            {"every_steps": 17},
            "every_steps is 17, and the run has 8 steps: the average",
        ),
        ({"epochs": 1}, {"every_steps": 8, "ramp": True}, ""),
    ],
)
def test_an_average_that_is_never_updated_is_said(
    train: dict[str, Any], ema: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(train=train, **{"decay": 0.5, **ema})
    runs.trainer(settings).fit()
    assert said in caplog.text and bool(said) == ("train.ema" in caplog.text)


def test_a_damaged_average_is_named() -> None:
    saved = state_after(Worker(), config(), None, 3)
    assert first_problem(saved) is None
    for damage, expected in (
        (lambda state: state["ema"]["weights"].pop("fc2.weight"), "ema.weights.fc2.weight differs"),
        (lambda state: state["ema"]["weights"].update(x=torch.ones(2)), "ema.weights.x differs"),
        (lambda state: state["ema"].update(updates=-1), "ema.updates"),
        (lambda state: state["ema"].pop("weights"), "ema.weights is missing"),
        (lambda state: state["ranks"][0].pop("ema_buffers"), "ranks.0.ema_buffers.bn1.running_mean differs"),
    ):
        state = copy.deepcopy(saved)
        damage(state)
        assert expected in str(first_problem(state))


def test_a_run_shows_evaluates_and_exports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = runs.config(runs=str(tmp_path), name="run", train={"ema": {**EMA, "best_by": "ema"}})
    arguments = ["--config", runs.write_config(tmp_path, settings)]
    done = runs.dist_train(*arguments)
    assert done.returncode == 0, done.stderr
    epochs = [line for line in runs.metrics(settings.folder) if line["kind"] == "epoch"]
    summary = runs.summary(settings.folder)
    assert summary["ema_test_top1"] == epochs[-1]["ema_test_top1"] and summary["best_by"] == "ema"
    assert summary["best_top1"] == max(line["ema_test_top1"] for line in epochs)
    assert "test accuracy of the averaged weights" in done.stdout

    best = settings.folder / "checkpoints" / "best.pt"
    evaluated = runs.dist_train(*arguments, "--evaluate", best)
    assert f"ema test: top-1 {summary['best_top1']:.2f} %" in evaluated.stdout, evaluated.stderr
    assert "the best on the test data up to then, by the average of its weights" in evaluated.stdout
    assert main(["inspect", str(settings.folder)]) == 0
    average, highest = (f"{summary[key]:.2f} %" for key in ("ema_test_top1", "best_top1"))
    chosen = f"highest so far of the averaged weights {highest}, chosen on the test data"
    assert f"; averaged weights: test {average}; {chosen}" in capsys.readouterr().out

    saved = read(best)
    for flags, expected in ([[], saved["weights"]], [["--ema"], saved["ema"]["weights"]]):
        export.main([str(best), "--format", "torch", "--out", str(tmp_path / "file.pt"), "--overwrite", *flags])
        weights = torch.load(tmp_path / "file.pt")["fc2.weight"]
        assert weights.count_nonzero() <= expected["fc2.weight"].numel() < weights.numel()
        torch.testing.assert_close(weights.sum(), expected["fc2.weight"].sum())
    assert f"the average of its weights; {summary['best_top1']:.2f} % on the test data" in capsys.readouterr().out


def test_export_refuses_a_run_without_an_average(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="run", train={"epochs": 1})
    assert runs.dist_train("--config", runs.write_config(tmp_path, settings)).returncode == 0
    with pytest.raises(UserError, match=r"has no average of the weights; train with train.ema, or omit --ema"):
        export.main([str(settings.folder), "--format", "torch", "--out", str(tmp_path / "file.pt"), "--ema"])
