"""Agreement of the loaders: the tensors they give, and one network's accuracy through both."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.harness.record import ROOT, Result
from benchmarks.harness.runs import evaluation_of
from benchmarks.parts.pipelines.bench import CLASSES, Bench, close
from dynsparse.config import loading
from dynsparse.runtime import Worker
from dynsparse.training.building import build_parts
from dynsparse.training.evaluate import evaluate
from dynsparse.training.trainer import Trainer
from pipelines.base import Data
from pipelines.datasets.photographs import NORMALISATION
from pipelines.tools import sample_images


def agreement(bench: Bench) -> Result:
    """Compare evaluation tensors of both loaders on the same images, and one network's accuracy through both."""
    jpeg = bench.large()
    png = bench.folder / "png"
    if not png.exists():
        _as_png(jpeg, png)
    return {
        "tensors": {kind: differences(bench, path) for kind, path in (("JPEG", jpeg), ("PNG", png))},
        "network": network(bench, jpeg),
    }


def _as_png(folder: Path, png: Path) -> None:
    """Write the same pixels in a format that every decoder decodes alike; training images only as many as must be."""
    train = [next(path.glob("*.jpg")) for path in sorted((folder / "train").iterdir())]
    for file in [*train, *sorted((folder / "val").rglob("*.jpg"))]:
        target = (png / file.relative_to(folder)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(target, compress_level=1)


def differences(bench: Bench, path: Path) -> Result:
    """Differences of values: a pixel has three."""
    dali, torch_ = (evaluation_of(bench.data(path, loader, CLASSES)) for loader in ("dali", "torch"))
    levels_of = torch.tensor(NORMALISATION.std).view(1, 3, 1, 1)
    largest, largest_normalised, total, total_normalised, over, count, images = 0.0, 0.0, 0.0, 0.0, 0, 0, 0
    for (ours, labels), (theirs, same_labels) in zip(dali.batches(), torch_.batches(), strict=True):
        assert torch.equal(labels, same_labels), "the same samples in the same order"
        normalised = (ours - theirs).abs()
        levels = normalised * levels_of
        largest = max(largest, levels.max().item())
        largest_normalised = max(largest_normalised, normalised.max().item())
        total, total_normalised = total + levels.sum().item(), total_normalised + normalised.sum().item()
        over += int((levels > 1.001).sum())  # Rounding of float32 is no grey level.
        count, images = count + levels.numel(), images + len(labels)
    close(dali, torch_)
    return {
        "images": images,
        "grey_levels": {"max": largest, "mean": total / count},
        "normalised": {"max": largest_normalised, "mean": total_normalised / count},
        "share_over_1_level": over / count,
    }


def network(bench: Bench, photographs: Path) -> Result:
    """Train a ResNet-18 at 48 px through DALI, then evaluate it through both loaders."""
    amount = bench.amount
    asked = [f"data.path={photographs}", f"data.threads={bench.threads}", f"runs={bench.folder / 'runs'}"]
    asked += [f"train.epochs={amount.network_epochs}", "log.tensorboard=false"]
    if len(sample_images.CLASSES) * amount.each < 100:
        asked += ["train.global_batch_size=8", "train.lr.warmup_epochs=0", "method.stop_epoch=1"]
    path = ROOT / "configs" / "sample_images_resnet.yaml"
    configs = {loader: loading.load(path, [*asked, f"data.loader={loader}"]) for loader in ("dali", "torch")}
    parts = {loader: build_parts(config, Worker()) for loader, config in configs.items()}
    trained, data = parts["dali"]
    with redirect_stdout(sys.stderr):
        Trainer(configs["dali"], trained, data, Worker()).fit()
    found: Result = {"epochs": amount.network_epochs}
    predictions = []
    for loader, (_, same_data) in parts.items():
        on = evaluate(trained.model, evaluation_of(same_data), torch.device("cpu"), nullcontext)
        found[loader] = {"top1": on.top1, "loss": on.loss, "images": on.samples}
        predictions.append(_predictions(trained.model, same_data))
        close(same_data.train, evaluation_of(same_data))
    found["difference_in_points"] = found["dali"]["top1"] - found["torch"]["top1"]
    found["predictions_that_differ"] = int((predictions[0] != predictions[1]).sum())
    return found


@torch.no_grad()
def _predictions(model: nn.Module, data: Data) -> Tensor:
    model.eval()
    return torch.cat([model(images).argmax(1) for images, _ in evaluation_of(data).batches()])
