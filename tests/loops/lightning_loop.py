"""SparseTraining in Lightning's Trainer with automatic optimisation, on two ranks.

There gradients are made inside `optimizer.step(closure)`, accumulated over two batches, clipped by norm. An average of
the weights goes along. A run is saved by the Trainer and resumed.
"""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from dynsparse import SparseTraining
from dynsparse.runtime import Worker
from pipelines.common.torchvision_ops import import_torchvision
from tests.loops.counting import Count, counter_for
from tests.loops.small import BY_GRADIENT, METHODS, images, network, optimizer_for

import_torchvision()  # Lightning's metrics import it where it is there.
lightning: Any = importlib.import_module("lightning.pytorch")
plugins: Any = importlib.import_module("lightning.pytorch.plugins")
environments: Any = importlib.import_module("lightning.fabric.plugins.environments")

GUIDE = Path(__file__).parents[2] / "docs/your-own-loop.md"
BATCHES, BATCH, EPOCHS, STOP = 9, 4, 4, 2
STEPS_PER_EPOCH = 5  # Of two batches, and one of what is left.


class AlreadyStarted(environments.LightningEnvironment):  # type: ignore[misc]
    """The ranks are there, and joined."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self.worker.world_size

    def global_rank(self) -> int:
        return self.worker.rank

    def local_rank(self) -> int:
        return self.worker.local_rank


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    """Loop as a user would write it, with a counter."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.net = network()
        self.averages: list[nn.Module] = []  # In a list: not a part of the module.
        self.saved: dict[str, Any] = {}
        self.averaged_at = 0

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_for(self.method, self)
        self.sparse = SparseTraining(
            self.net,
            optimizer,
            METHODS[self.method],
            sparsity=0.8,
            total_steps=int(self.trainer.estimated_stepping_batches),
            steps_per_epoch=STEPS_PER_EPOCH,
            state=self.saved.get("sparse"),
            on_reallocation=lambda report: self.sparse.apply_masks(self.averages[0]),
        )
        average = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.9))
        if self.saved:
            average.load_state_dict(self.saved["average"])
        self.averages = [average]
        self.counter = counter_for(self.sparse, self.net, optimizer)
        self.counter.follow(average)
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS_PER_EPOCH)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        if self.method in BY_GRADIENT and not self.saved:  # A resumed run has a momentum already.
            self.counter.show_gradients(BY_GRADIENT[self.method])
        self.sparse.prepare_gradients()  # Clipping comes next.
        self.counter.look_at_gradients()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step > self.averaged_at:
            self.averaged_at = self.trainer.global_step
            self.averages[0].update_parameters(self.net)
            self.counter.look()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sparse"] = self.sparse.state_dict()
        checkpoint["average"] = self.averages[0].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint
        self.averaged_at = checkpoint["global_step"]


def fit(worker: Worker, method: str, folder: Path, resume: Path | None = None) -> tuple[Count, Tensor]:
    """Train; returns what was counted, and the average's weights as one tensor."""
    checkpoints = lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=worker.world_size,
        strategy=lightning.strategies.DDPStrategy(process_group_backend="gloo"),
        plugins=[AlreadyStarted(worker)],
        max_epochs=EPOCHS,
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    classifier = Classifier(method)
    data = DataLoader(images(BATCHES * BATCH * worker.world_size), batch_size=BATCH)
    trainer.fit(classifier, data, ckpt_path=resume, weights_only=True)
    classifier.counter.close()
    average = torch.cat([parameter.detach().flatten() for parameter in classifier.averages[0].parameters()])
    return classifier.counter.count, average


def straight_and_resumed(worker: Worker, folder: Path) -> dict[str, list[tuple[Count, Tensor]]]:
    runs = {}
    for method in METHODS:
        straight = fit(worker, method, folder / method)
        resumed = fit(worker, method, folder / f"{method}_resumed", folder / method / f"epoch={STOP - 1}.ckpt")
        runs[method] = [straight, resumed]
    return runs


def as_printed(worker: Worker, fused: bool) -> dict[str, dict[float, list[Tensor]]]:
    """Run the guide's module with a scaler of each factor, and end with masks and what was learnt."""
    (source,) = re.findall(r"```python\n(class Classifier.*?)```", GUIDE.read_text(), re.DOTALL)
    ends: dict[str, dict[float, list[Tensor]]] = {"rigl": {}, "sparse_momentum": {}}
    for method, by_scale in ends.items():
        scope: dict[str, Any] = {"lightning": lightning, "torch": torch, "SparseTraining": SparseTraining}
        optimizer = "torch.optim.AdamW(self.model.parameters(), lr=0.01, fused=FUSED)"
        as_here = re.sub(r"torch\.optim\.SGD\(.*\)", optimizer, source).replace('"rigl"', repr(METHODS[method]))
        exec(as_here.replace("FUSED", repr(fused)), scope)

        class Printed(scope["Classifier"]):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model, self.saved = network(), None

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        for scale in (1.0, 65536.0):
            plugin = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
            plugin.autocast_context_manager = nullcontext  # Half precision rounds otherwise at each scale.
            trainer = lightning.Trainer(
                accelerator="cpu",
                plugins=[plugin],
                max_epochs=2,
                gradient_clip_val=None if fused else 0.5,  # Lightning refuses to clip for fused optimizers.
                enable_checkpointing=False,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            module = Printed()
            trainer.fit(module, DataLoader(images(BATCHES * BATCH), batch_size=BATCH))
            assert module.sparse.steps == 2 * BATCHES
            (optimizer,) = trainer.optimizers
            states = [optimizer.state[layer.parameter]["exp_avg_sq"] for layer in module.sparse.masks]
            momenta = list(getattr(module.sparse.method, "momentum", {}).values())
            by_scale[scale] = [*(layer.active for layer in module.sparse.masks), *states, *momenta]
    return ends
