"""Each option of training reaches what it is for: looked at from inside the model and the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dynsparse.config.schema import RunConfig
from dynsparse.errors import StopRequested
from dynsparse.models.small_cnn import SmallCnnSettings
from dynsparse.runtime import Worker
from dynsparse.training.evaluate import Evaluation, Evaluations
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_loop import CNN, Recorder


def one_step(**train: Any) -> tuple[Trainer, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A trainer after one training step on colour images, and what its first layer saw: (input, output)."""
    trainer = runs.trainer(runs.config(model=CNN, method={"name": "static"}, train=train, data={"shape": [3, 6, 6]}))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.model.conv1.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))  # type: ignore[union-attr]
    trainer.train_step(next(trainer.data.train.epoch()))
    return trainer, seen


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    trainer, (*_, (_, output)) = one_step(precision="bf16")
    assert output.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert one_step()[1][-1][1].dtype == torch.float32


def test_channels_last_reaches_weights_and_activations() -> None:
    trainer, (*_, (images, output)) = one_step(channels_last=True)
    weight = trainer.model.conv1.weight  # type: ignore[union-attr]
    for tensor in (images, output, weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]
        assert not tensor.is_contiguous()  # type: ignore[operator]
    assert one_step()[1][-1][1].is_contiguous()


def test_label_smoothing_is_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    original = functional.cross_entropy

    def spy(*arguments: Any, label_smoothing: float = 0.0, **options: Any) -> torch.Tensor:
        given.append(label_smoothing)
        return original(*arguments, label_smoothing=label_smoothing, **options)

    monkeypatch.setattr(functional, "cross_entropy", spy)
    one_step(label_smoothing=0.125)
    assert given == [0.125]


def test_optimizer_settings_reach_the_optimizer() -> None:
    sgd = {"name": "sgd", "momentum": 0.7, "nesterov": False, "weight_decay": 0.03}
    optimizer = one_step(optimizer=sgd)[0].optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert {**optimizer.param_groups[0], **sgd, "name": None} == {**optimizer.param_groups[0], "name": None}
    adamw = {"name": "adamw", "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.03}
    optimizer = one_step(optimizer=adamw)[0].optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.03)


def test_one_step_of_sgd_by_hand() -> None:
    """Nesterov, weight decay, masks: w <- w - lr (g + wd w + momentum (g + wd w)) inside the mask, 0 outside."""
    settings = runs.config(model=CNN, method={"name": "static"})
    trainer, twin = runs.trainer(settings), runs.trainer(settings)
    ((images, labels),) = batch = next(trainer.data.train.epoch())
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    functional.cross_entropy(twin.model(images), labels).backward()
    trainer.train_step(batch)
    masks = {layer.name: layer.mask for layer in trainer.masks}
    for (name, after), old, reference in zip(
        trainer.model.named_parameters(), before, twin.model.parameters(), strict=True
    ):
        assert reference.grad is not None
        gradient = reference.grad * masks.get(name, 1) + 1e-4 * old
        assert torch.allclose(after, old - 0.05 * (gradient + 0.9 * gradient), atol=1e-7), name


def interrupted(settings: RunConfig, step: int) -> dict[str, Any]:
    """Stop a run after `step` and return the state to resume from."""
    trainer = runs.trainer(settings)
    trainer.stop_requested = lambda: trainer.progress.step == step
    with pytest.raises(StopRequested):
        trainer.fit()
    return trainer.run.save([trainer.run.of_this_rank()])


class Dropping(SmallCnnSettings):
    """A network that draws random numbers in training."""

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(super().build(image_shape, classes), nn.Dropout(0.5))


def test_random_state_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run with dropout equals the uninterrupted one only if torch's generator is restored."""
    settings = runs.config(model=CNN).model_copy(update={"model": Dropping(**CNN)})
    whole = runs.trainer(settings).fit()
    saved = interrupted(settings, step=5)
    second = runs.trainer(settings)
    torch.manual_seed(99)
    second.load(saved)
    assert second.fit().weight_digest == whole.weight_digest


def test_the_epochs_report_goes_on_after_a_resume() -> None:
    """Training loss and accuracy of the epoch that was interrupted are those of the whole epoch."""
    settings = runs.config()
    whole = Recorder()
    runs.trainer(settings, observers=[whole]).fit()
    saved = interrupted(settings, step=5)
    resumed = Recorder()
    second = runs.trainer(settings, observers=[resumed])
    second.load(saved)
    second.fit()
    for a, b in zip(whole.epochs, resumed.epochs, strict=True):
        assert (a.train_loss, a.train_top1, a.results) == (b.train_loss, b.train_top1, b.results)


def test_the_best_is_the_best_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([50.0, 80.0, 60.0, 80.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: Evaluations(Evaluation(1.0, next(accuracies), 90.0, 50)))
    trainer = runs.trainer(runs.config(train={"epochs": 4}))
    saves: list[bool] = []
    trainer.saving.save = lambda best=False, **others: saves.append(best)  # type: ignore[method-assign]
    summary = trainer.fit()
    assert (summary.best_top1, summary.test_top1) == (80.0, 80.0)
    assert saves == [False, True, True, False, False], "the initial state, then one an epoch"


def evaluated(worker: Worker) -> tuple[float, float]:
    """Loss of the test set under each rank's own statistics, averaged by hand, and by the trainer."""
    trainer = runs.trainer(runs.config(data={"noise": 200.0}), worker)
    for step in trainer.data.train.epoch():
        trainer.train_step(step)
    own = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    gathered: list[Any] = [None] * worker.world_size
    torch.distributed.all_gather_object(gathered, own)
    assert not torch.equal(gathered[0]["bn1.running_mean"], gathered[1]["bn1.running_mean"])
    by_trainer = trainer.evaluate().test.loss
    twin = runs.trainer(runs.config(data={"noise": 200.0}))  # alone: it sees all test samples
    twin.model.load_state_dict(trainer.model.state_dict())
    with torch.no_grad():
        for name, buffer in twin.model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([rank[name] for rank in gathered]).mean(0))
    twin.model.eval()
    losses = [functional.cross_entropy(twin.model(x), y, reduction="sum") for x, y in twin.data.test.batches()]
    return by_trainer, float(torch.stack(losses).sum()) / 50


def test_evaluation_uses_the_mean_statistics() -> None:
    for by_trainer, by_hand in run_distributed(evaluated, 2):
        assert by_trainer == pytest.approx(by_hand, rel=1e-5)
