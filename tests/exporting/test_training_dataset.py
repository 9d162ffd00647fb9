"""A folder is split again as training split it, and refused where that cannot be told."""

import hashlib
import shutil
from dataclasses import replace

import pytest
from bundle_parts import training, training_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regnet_deploy.bundle import Bundle, Manifest, open_bundle, update_bundle
from regnet_deploy.errors import DataError, MissingPart
from regnet_deploy.exporting.training_dataset import is_training_dataset, load_training_dataset
from regnet_deploy.images.dataset import build_dataset
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.listing import list_images
from regnet_deploy.progress import NoProgress
from regnet_deploy.training.execution import ExecutionRequest
from regnet_deploy.training.final_test import unseen_images
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions, train


def paths(dataset, images):
    return [(dataset.name(image), image.label) for image in images]


@pytest.fixture
def folder(tmp_path, write_images):
    root = tmp_path / "birds"
    for label, name in enumerate(["finch", "gull", "owl"]):
        write_images(root / name, 10 + label, seed=label)
    (root / "gull" / "broken.png").write_bytes(b"not an image")
    (root / "note.txt").write_text("beside the classes")
    return root


@pytest.mark.parametrize(("share", "seed"), [(0.1, 0), (0.25, 7), (0.125, 1), (0.9, 2)])
def test_what_was_held_out_is_found_again(untrained, folder, trained_on, share, seed):
    before = trained_on(untrained, folder, share, seed)
    found = load_training_dataset(folder, open_bundle(untrained))
    assert paths(found, found.train) == paths(before, before.train)
    assert paths(found, found.val) == paths(before, before.val)
    assert found.classes == ("finch", "gull", "owl")
    assert "gull/broken.png" not in dict(paths(found, found.train + found.val))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_the_number_held_out_says_which(tmp_path, sizes, share, seed):
    root = tmp_path / "images"
    shutil.rmtree(root, ignore_errors=True)
    for label, size in enumerate(sizes):
        (root / f"c{label}").mkdir(parents=True)
        for number in range(size):
            (root / f"c{label}" / str(number)).touch()
    listing = list_images(root)
    empty = ImageCheck("", 0, 0, hashlib.sha256(b"").hexdigest(), 0, 0, "")
    before = build_dataset(listing, dict.fromkeys(listing.source.names, empty), val_split=share, seed=seed)
    data = training_data(
        split=before.split, digest=before.digest, train_images=len(before.train), val_images=len(before.val)
    )
    manifest = Manifest(labels=before.classes, training=training(data=data, seed=seed))
    found = load_training_dataset(root, Bundle(tmp_path, manifest, {}, "", {}))
    assert paths(found, found.val) == paths(before, before.val)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 2),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.49),
    st.booleans(),
)
def test_the_numbers_held_out_for_validation_and_to_test_on_say_which(tmp_path, sizes, val, test, has_val):
    root = tmp_path / "images"
    shutil.rmtree(root, ignore_errors=True)
    for label, size in enumerate(sizes):
        for number in range(size):
            file = root / ("train" if has_val else "") / f"c{label}" / str(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    if has_val:
        shutil.copytree(root / "train", root / "val")
    listing = list_images(root)
    empty = ImageCheck("", 0, 0, hashlib.sha256(b"").hexdigest(), 0, 0, "")
    checked = dict.fromkeys(listing.source.names, empty)
    before = build_dataset(listing, checked, val_split=val, test_split=test)
    data = training_data(
        folder="images",
        split=before.split,
        digest=before.digest,
        train_images=len(before.train),
        val_images=len(before.val),
        test=unseen_images(before),
    )
    bundle = Bundle(tmp_path, Manifest(labels=before.classes, training=training(data=data, seed=0)), {}, "", {})
    found = load_training_dataset(root, bundle)
    assert [paths(found, images) for images in (found.train, found.val, found.test)] == [
        paths(before, images) for images in (before.train, before.val, before.test)
    ]
    assert (found.split, found.test_split) == (before.split, before.test_split)
    next(root.rglob("c0/0")).write_bytes(b"changed")
    with pytest.raises(DataError, match="held-out images are not known"):
        load_training_dataset(root, bundle)
    if has_val:  # of another folder nothing was held out
        other = load_training_dataset(root.rename(root.with_name("other")), bundle)
        assert (len(other.train), other.test) == (len(before.train) + len(before.test), ())
        shutil.rmtree(root.with_name("other"))


def test_a_folder_to_test_on_is_no_news_if_training_used_it(untrained, folder, write_images, recorded_progress):
    for name in ("finch", "gull", "owl"):
        for split in ("val", "test"):
            write_images(folder.parent / "split" / split / name, 2)
        shutil.copytree(folder / name, folder.parent / "split" / "train" / name)
    recipe = Recipe(epochs=1, batch_size=8, warmup_epochs=0)
    wanted = ExecutionRequest(device="cpu", precision="fp32", channels_last="off", compiled="off")
    bundle = train(untrained, folder.parent / "split", recipe, TrainOptions(wanted, workers=0), NoProgress())
    assert bundle.training.test.images == 6
    found = load_training_dataset(folder.parent / "split", bundle, recorded_progress)
    assert recorded_progress.messages == []
    assert not any("test/" in name for name in found.source.names)


def test_what_train_itself_wrote_is_understood(untrained, folder):
    recipe = Recipe(epochs=1, batch_size=8, warmup_epochs=0, seed=3)
    wanted = ExecutionRequest(device="cpu", precision="fp32", channels_last="off", compiled="off")  # nothing to try out
    bundle = train(untrained, folder, recipe, TrainOptions(wanted, workers=0, val_split=0.3), NoProgress())
    found = load_training_dataset(folder, bundle)
    data = bundle.training.data
    assert (len(found.train), len(found.val)) == (data.train_images, data.val_images) == (23, 10)
    assert found.split == data.split


def test_progress_receives_the_files_that_are_read(untrained, folder, trained_on, recorded_progress):
    trained_on(untrained, folder)
    recorded_progress.step("files")
    load_training_dataset(folder, open_bundle(untrained), recorded_progress)
    assert recorded_progress.updates == [("files", done, 34, "") for done in range(1, 35)]


def test_what_training_did_not_say_of_the_folder_is_said(untrained, folder, trained_on, recorded_progress):
    recorded_progress.step("files")
    trained_on(untrained, folder)
    load_training_dataset(folder, open_bundle(untrained), recorded_progress)
    assert recorded_progress.messages == []
    shutil.copytree(folder / "owl", folder / "owl" / "@eaDir")
    load_training_dataset(folder, open_bundle(untrained), recorded_progress)
    assert recorded_progress.messages == ["1 folder left out:", "  owl/@eaDir/: thumbnails of a NAS"]


def test_a_class_that_another_system_spells_in_other_unicode_is_the_same(untrained, folder, trained_on):
    (folder / "owl").rename(folder / "mo\u0308we")  # as macOS writes it
    trained_on(untrained, folder)
    (folder / "mo\u0308we").rename(folder / "m\u00f6we")
    for split in ("train", "val"):
        shutil.copytree(folder, folder.parent / "split" / split)
    found = load_training_dataset(folder.parent / "split", open_bundle(untrained))
    assert found.classes == open_bundle(untrained).labels == ("finch", "gull", "mo\u0308we")


def test_as_many_images_are_needed_to_be_the_folder_that_was_trained_on(untrained, folder, trained_on):
    trained_on(untrained, folder)
    bundle = open_bundle(untrained)
    found = load_training_dataset(folder, bundle)
    assert is_training_dataset(found, bundle)
    assert not is_training_dataset(replace(found, val=found.val[1:]), bundle)
    assert not is_training_dataset(replace(found, train=found.train[1:]), bundle)
    assert not is_training_dataset(found, replace(bundle, manifest=Manifest()))


def remove(root):
    (root / "owl" / "000.png").unlink()


def exchange(root):
    (root / "owl" / "000.png").rename(root / "gull" / "x.png")
    (root / "gull" / "000.png").rename(root / "owl" / "000.png")


def rename(root):
    (root / "owl" / "000.png").rename(root / "owl" / "new.png")


def change(root):
    (root / "owl" / "000.png").write_bytes((root / "owl" / "001.png").read_bytes())


@pytest.mark.parametrize("how", [remove, exchange, rename, change])
def test_where_the_images_are_others_what_was_held_out_is_unknown(untrained, folder, trained_on, how):
    trained_on(untrained, folder)
    how(folder)
    with pytest.raises(DataError, match="does not contain the 33 images of the training run") as error:
        load_training_dataset(folder, open_bundle(untrained))
    assert "the 3 held-out images are not known: give the folder as it was" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_with_validation_images_need_not_be_the_one(untrained, folder, trained_on, tmp_path, write_images):
    trained_on(untrained, folder)
    other = tmp_path / "other"
    for subset, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(["finch", "gull", "owl"]):
            write_images(other / subset / name, count, seed=40 + label)
    found = load_training_dataset(other, open_bundle(untrained))
    assert (len(found.train), len(found.val), found.split) == (12, 6, "val/ of the folder")
    assert all(found.name(image).startswith("val/") for image in found.val)


@pytest.mark.parametrize("within", ["train", "val"])
def test_a_folder_within_is_not_taken_for_the_whole(untrained, trained_on, tmp_path, write_images, within):
    root = tmp_path / "birds"
    for subset, count in (("train", 4), ("val", 4)):
        for label, name in enumerate(["finch", "owl"]):
            write_images(root / subset / name, count, seed=label)
    trained_on(untrained, root)
    with pytest.raises(DataError, match=r"has no validation folder, and the network was trained with one .*birds"):
        load_training_dataset(root / within, open_bundle(untrained))


def test_another_class_layout_names_both_and_suggests(untrained, folder, trained_on):
    trained_on(untrained, folder)
    (folder / "gull").rename(folder / "gulls")
    (folder / "finch" / "000.png").rename(folder / "stray.png")
    with pytest.raises(DataError) as error:
        load_training_dataset(folder, open_bundle(untrained))
    assert str(error.value) == (
        f"the classes of {folder} are not those of the bundle: 1 class folders are not among the bundle's labels: "
        "gulls (did you mean gull?); 1 of the bundle's 3 labels have no class folder: gull; give the training folder"
    )


def test_a_bundle_that_is_not_trained_says_so(untrained, folder):
    with pytest.raises(MissingPart, match=r"no labels yet: run `regnet-deploy train --data DIR \S+`"):
        load_training_dataset(folder, open_bundle(untrained))
    update_bundle(untrained, {"labels": ["finch", "gull", "owl"]})
    with pytest.raises(MissingPart, match="no training yet"):
        load_training_dataset(folder, open_bundle(untrained))


def test_no_folder(untrained, tmp_path):
    with pytest.raises(DataError, match=r"no image folder at .*nowhere: it does not exist"):
        load_training_dataset(tmp_path / "nowhere", open_bundle(untrained))
