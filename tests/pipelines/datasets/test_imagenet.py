"""Folders of images: the files, the windows, and what the network gets of them."""

from __future__ import annotations

import shutil
from math import exp, floor, log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageOps
from pydantic import ValidationError

import pipelines
from pipelines import augment
from pipelines.base import Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.datasets import photographs
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.loaders import dali_views
from pipelines.order import SampleOrder, Share
from pipelines.sources.image_folder import list_images
from tests.pipelines.pictures import CLASSES, numbered_folder, picture
from tests.pipelines.streams import (
    LOADERS,
    SEED,
    assert_known_beforehand,
    assert_workers_and_resume_change_nothing,
    request,
    whole,
)

# (width, height): tiny, square, wide, tall.
SIZES = [(8, 8), (64, 64), (300, 40), (40, 300), (9, 200), (120, 90), (33, 57), (300, 200), (1, 30), (31, 16)]
Window = tuple[int, int, int, int]
"""Top, left, height, width."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, each in (("train", 20), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                image = picture(*SIZES[i % len(SIZES)], seed=1000 * label + i + each)
                image.save(root / part / name / f"{i:03}.JPEG", quality=95)
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "images"))


def settings(folder: Path, **options: object) -> ImagenetSettings:
    small = {"image_size": 32, "evaluation_resize": 40, "number_of_classes": 3, "threads": 1}
    return ImagenetSettings.model_validate({"name": "imagenet", "path": str(folder), **small, **options})


def normalised(images: list[NDArray[np.uint8]]) -> torch.Tensor:
    """The formula of torchvision's ToTensor and Normalize."""
    scaled = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (photographs.MEAN, photographs.STD))
    return (scaled - mean) / std


def window(width: int, height: int, uniforms: NDArray[np.float64]) -> Window:
    """A plain model of torchvision's RandomResizedCrop, over the same random numbers."""
    for area, aspect in zip(uniforms[:10], uniforms[10:20], strict=True):
        target = width * height * (0.08 + 0.92 * area)
        ratio = exp(log(3 / 4) + aspect * (log(4 / 3) - log(3 / 4)))
        w, h = round(sqrt(target * ratio)), round(sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return floor(uniforms[20] * (height - h + 1)), floor(uniforms[21] * (width - w + 1)), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def windows(sizes: NDArray[np.int64], uniforms: NDArray[np.float64]) -> list[Window]:
    """Windows that DALI computes, from sizes int64 [n, 2] (width, height) and uniforms [n, 22]."""
    shapes = np.concatenate((sizes[:, ::-1], np.full((len(sizes), 1), 3)), axis=1)
    batch = (shapes, augment.window_factors(uniforms[:, :20]), uniforms[:, 20:].copy())

    @pipeline_def(batch_size=len(sizes), num_threads=1, device_id=None, exec_dynamic=True)  # type: ignore[untyped-decorator]
    def graph() -> object:
        kinds = [types.INT64, types.FLOAT64, types.FLOAT64]
        inputs = fn.external_source(source=lambda: batch, num_outputs=3, batch=True, dtype=kinds, ndim=[1, 2, 1])
        return dali_views.random_window(*inputs)

    pipeline = graph()
    pipeline.build()
    anchors, extents = (np.asarray(output.as_tensor()) for output in pipeline.run())
    return [tuple(window) for window in np.concatenate((anchors, extents), axis=1).tolist()]


def test_windows_are_torchvisions() -> None:
    random = np.random.default_rng(1)
    sizes = np.concatenate((random.integers(1, 60, (1500, 2)), random.integers(1, 7000, (1500, 2))))
    uniforms = random.random((len(sizes), 22))
    expected = [window(width, height, row) for (width, height), row in zip(sizes.tolist(), uniforms, strict=True)]
    found = windows(sizes, uniforms)
    assert found == expected
    factors, places = augment.window_factors(uniforms[:, :20]), uniforms[:, 20:]
    in_numpy = [
        augment.random_window(height, width, *numbers)
        for (width, height), *numbers in zip(sizes.tolist(), factors, places, strict=True)
    ]
    assert in_numpy == expected
    whole_side = [h == height or w == width for (_, _, h, w), (width, height) in zip(found, sizes, strict=True)]
    assert 100 < sum(whole_side) < 2500, "both ways are tested: an attempt, and the fallback"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 500), (500, 1), (30, 10), (10, 30), (8, 8)])
@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-53])
def test_windows_at_the_ends_of_the_random_numbers(width: int, height: int, value: float) -> None:
    uniforms = np.full((1, 22), value)
    ((top, left, h, w),) = windows(np.array([(width, height)]), uniforms)
    assert 0 <= top <= height - h and 0 <= left <= width - w and h >= 1 and w >= 1
    assert abs(np.array((top, left, h, w)) - window(width, height, uniforms[0])).max() <= 1


@pytest.mark.parametrize("loader", LOADERS)
def test_training_images_are_windows_resized_and_mirrored_as_the_random_numbers_say(written: Path, loader: str) -> None:
    """Against PIL's crop and resize of JPEGs of all sizes; PIL rounds to whole grey levels, twice."""
    files = sorted((written / "train").glob("*/*"))
    order = SampleOrder(SEED, len(files), 24)
    data = pipelines.build(settings(written, loader=loader), request())
    for batch, step in enumerate(data.train.epoch()):
        ((images, labels),) = step
        expected = []
        for sample, uniforms in zip(order.batch(0, batch), order.randoms(0, batch, 0, Share(), 23), strict=True):
            image = Image.open(files[sample]).convert("RGB")
            top, left, h, w = window(*image.size, uniforms)
            crop = image.crop((left, top, left + w, top + h)).resize((32, 32), Image.Resampling.BILINEAR)
            expected.append(np.array(crop)[:, ::-1] if uniforms[22] < 0.5 else np.array(crop))
        grey_levels = (images - normalised(expected)).abs() * torch.tensor(photographs.STD).view(3, 1, 1) * 255
        assert float(grey_levels.max()) < 2
        assert float(grey_levels.mean()) < 0.5
        assert [CLASSES[label] for label in labels] == [files[i].parent.name for i in order.batch(0, batch)]


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_is_torchvisions_resize_and_central_crop(written: Path, loader: str) -> None:
    """Sizes at which torchvision and DALI round alike; PIL rounds to whole grey levels, twice."""
    data = pipelines.build(settings(written, loader=loader), request())
    images, labels = whole(data.test)
    files = sorted((written / "val").glob("*/*"))
    assert data.test.samples == len(files) == 12
    assert labels.tolist() == [label for label in range(3) for _ in range(4)]
    expected = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 40 / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 32) // 2, (image.height - 32) // 2
        expected.append(np.array(image.crop((left, top, left + 32, top + 32))))
    grey_levels = (images - normalised(expected)).abs() * torch.tensor(photographs.STD).view(3, 1, 1) * 255
    assert float(grey_levels.max()) < 2


@pytest.mark.parametrize(
    ("loader", "augment"), [("dali", True), ("dali", False), pytest.param("torch", True, marks=pytest.mark.slow)]
)
def test_workers_and_resume_change_nothing(written: Path, loader: str, augment: bool) -> None:
    def build(asked: Request) -> TrainPipeline:
        given = settings(written, loader=loader, augment=augment, validation_samples=6)
        return pipelines.build(given, asked).train

    assert_workers_and_resume_change_nothing(build)


@pytest.mark.parametrize("loader", LOADERS)
def test_without_augmentation_training_sees_what_evaluation_sees(written: Path, loader: str) -> None:
    data = pipelines.build(settings(written, loader=loader, augment=False), request(evaluate_train=True))
    images, labels = whole(data.train_evaluation)
    order = SampleOrder(SEED, 60, 24)
    for batch, ((trained_on, trained_labels),) in enumerate(data.train.epoch()):
        assert torch.equal(trained_on, images[order.batch(0, batch)])
        assert torch.equal(trained_labels, labels[order.batch(0, batch)])


def test_the_held_out_are_seen_as_evaluation_sees_them(written: Path) -> None:
    everything, _ = whole(pipelines.build(settings(written), request(evaluate_train=True)).train_evaluation)
    data = pipelines.build(settings(written, validation_samples=9), request(evaluate_train=True))
    held_out, labels = whole(data.validation)
    trained_on, _ = whole(data.train_evaluation)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    seen = sorted(image.numpy().tobytes() for image in torch.cat((held_out, trained_on)))
    assert seen == sorted(image.numpy().tobytes() for image in everything)


@pytest.mark.parametrize("loader", LOADERS)
def test_kinds_of_images(folder: Path, loader: str) -> None:
    """Grey, CMYK, a PNG named .jpg, transparency, a palette, EXIF orientation: each is what PIL makes of it."""
    kind, image = folder / "val" / "ape", picture(60, 50, seed=5)
    shutil.rmtree(kind)
    kind.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("L").save(kind / "0.jpg", quality=95)
    image.convert("CMYK").save(kind / "1.JPG", quality=95)
    image.save(kind / "2.jpg", format="PNG")
    image.convert("RGBA").save(kind / "3.png")
    image.convert("P").save(kind / "4.Png")
    image.save(kind / "5.jpeg", exif=turned, quality=95)
    image.save(kind / "6.webp", lossless=True)
    image.save(kind / "7.bmp")
    image.save(kind / "8.tif")
    image.save(kind / "9.tiff")
    plain = pipelines.build(settings(folder, loader=loader, image_size=50, evaluation_resize=50), request())
    images, _ = whole(plain.test)
    expected = []
    for file in sorted(kind.iterdir()):
        upright = np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
        top, left = (upright.shape[0] - 50) // 2, (upright.shape[1] - 50) // 2
        expected.append(upright[top : top + 50, left : left + 50])
    assert torch.allclose(images[:10], normalised(expected), atol=1e-5)


@pytest.mark.parametrize("loader", LOADERS)
def test_windows_are_of_the_upright_image(folder: Path, loader: str) -> None:
    """A wide image that EXIF turns into a tall one, trained on: as if it had been stored upright."""
    for name in CLASSES:
        shutil.rmtree(folder / "train" / name)
        (folder / "train" / name).mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = picture(90, 160, seed=5)

    def steps(data: Path) -> list[torch.Tensor]:
        return [
            images for ((images, _),) in pipelines.build(settings(data, loader=loader), request(batch=3)).train.epoch()
        ]

    # A folder of its own: DALI, which reads ahead, must not find its files changed.
    shutil.copytree(folder, folder.with_name("turned"))
    for name in CLASSES:
        upright.save(folder / "train" / name / "0.png")
        lying = upright.rotate(90, expand=True)
        lying.save(folder.with_name("turned") / "train" / name / "0.png", exif=turned)
    expected = steps(folder)
    assert all(torch.equal(a, b) for a, b in zip(steps(folder.with_name("turned")), expected, strict=True))


def test_files_are_listed_in_order_whatever_else_lies_there(folder: Path) -> None:
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "LICENSE.txt").write_text("x")
    (folder / "train" / "ape" / ".hidden.jpg").write_text("x")
    (folder / "train" / "ape" / "jpg").write_text("x")
    (folder / "train" / "ape" / "Übersicht ä.jpg").write_bytes((folder / "train/ape/000.JPEG").read_bytes())
    pipelines.check(settings(folder))
    files = list_images(folder, "train", CLASSES)
    found = [files.path(i).tobytes().decode() for i in range(len(files.labels))]
    assert [f"{folder}/{files.name(i)}" for i in range(len(files.labels))] == found
    assert found == sorted(str(path) for path in (folder / "train").glob("[abc]*/[0-9Ü]*"))
    assert np.bincount(files.labels).tolist() == [21, 20, 20]
    assert pipelines.build(settings(folder), request(evaluate_train=True)).train_evaluation is not None


def test_labels_are_those_of_train_where_val_lacks_a_class(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "bee")
    pipelines.check(settings(folder))
    _, labels = whole(pipelines.build(settings(folder), request()).test)
    assert labels.tolist() == [0] * 4 + [2] * 4


def test_absent_folders_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    with pytest.raises(UserError, match=r"data\.path: .*/train cannot be read \(No such file.*train/CLASS/"):
        pipelines.check(settings(folder))
    with pytest.raises(UserError, match=r"data\.path: .*/train cannot be read"):
        pipelines.build(settings(folder), request())


def test_another_number_of_classes_is_refused(folder: Path) -> None:
    match = r"data\.number_of_classes is 1000, .*/train has 3 class folders; .*data\.number_of_classes=3"
    with pytest.raises(UserError, match=match):
        pipelines.check(settings(folder, number_of_classes=1000))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_folder_without_images_is_refused(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part / "bee")
    (folder / part / "bee").mkdir()
    (folder / part / "bee" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=rf"data\.path: .*/{part}/bee holds no image \(jpg, .*remove the class"):
        pipelines.check(settings(folder))


def test_a_class_only_in_val_is_refused(folder: Path) -> None:
    shutil.copytree(folder / "val" / "bee", folder / "val" / "dog")
    with pytest.raises(UserError, match=r"data\.path: .*/val has 1 class.* that .*/train lacks, such as dog;"):
        pipelines.check(settings(folder))


def test_validation_images_in_no_class_folders_are_refused(folder: Path) -> None:
    for name in CLASSES:
        shutil.rmtree(folder / "val" / name)
    with pytest.raises(UserError, match=r"data\.path: .*/val has no class folders; put .* into val/CLASS/"):
        pipelines.check(settings(folder))


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"evaluation_resize is 40, image_size 48; .*evaluation_resize=48"):
        settings(Path("anywhere"), image_size=48)


def test_the_order_of_training_is_known_beforehand(folder: Path) -> None:
    """No image is opened."""
    for path in folder.rglob("*.JPEG"):
        path.write_bytes(b"")
    assert_known_beforehand(settings(folder), 60)
    assert_known_beforehand(settings(folder, augment=False), 60)
    listed = folder / "bad.txt"
    listed.write_text(f"val/{CLASSES[0]}/999.JPEG\n")
    with pytest.raises(UserError, match=r"data\.exclude: .* names 1 files that .* does not have"):
        pipelines.position_of(settings(folder, exclude=str(listed)), request())


def test_one_folder_is_not_two_parts(tmp_path: Path) -> None:
    folder = numbered_folder(tmp_path / "images", train=6, val=3)
    shutil.rmtree(folder / "val")
    (folder / "val").symlink_to("train")
    with pytest.raises(UserError, match=r"images/val is of both train and val; what is trained on, or chosen"):
        pipelines.check(settings(folder))
