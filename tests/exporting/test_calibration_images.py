"""Images to calibrate with: real, trained on, apart from golden and validation images, the same for a seed."""

import shutil

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.exporting.calibration import calibration_digest, make_calibration_set
from regnet_deploy.exporting.decoded_images import pixels_fingerprint
from regnet_deploy.exporting.training_dataset import load_training_dataset
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels

SIDE = 16
PREPROCESSING = default_preprocessing(SIDE)
NONE = np.empty((0, SIDE, SIDE, 3), np.uint8)
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="session")
def plain(tmp_path_factory, write_images):
    """340 different images in a folder without folders, and files that are none."""
    root = tmp_path_factory.mktemp("plain")
    write_images(root, 340)
    (root / "readme.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    for number in range(20):
        (root / f"broken{number}.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="session")
def classes(tmp_path_factory, write_images):
    """Class folders, of which training holds images out: 160, 150 and 60."""
    root = tmp_path_factory.mktemp("classes")
    for label, (name, count) in enumerate(zip(CLASSES, (160, 150, 60), strict=True)):
        write_images(root / name, count, seed=label + 1)
    return root


def network_input(file):
    return load_pixels(file.read_bytes(), PREPROCESSING)


def files_of(root, pixels):
    """Return the names of the files whose views these pixels are."""
    names = {network_input(file).tobytes(): file for file in root.rglob("*.png") if file.name[0] != "."}
    return [names[image.tobytes()].relative_to(root).as_posix() for image in pixels]


def test_a_plain_folder_gives_what_it_has(plain, untrained, recorded_progress):
    recorded_progress.step("images")
    found = make_calibration_set(plain, open_bundle(untrained), PREPROCESSING, NONE, progress=recorded_progress)
    assert found.pixels.shape == (340, SIDE, SIDE, 3)
    assert len(set(files_of(plain, found.pixels))) == 340
    assert (found.source, found.folder, found.seed) == ("user images", plain.name, 0)
    assert found.digest == calibration_digest(found.pixels, PREPROCESSING)
    assert set(found.unusable) == {f"broken{number}.jpg" for number in range(20)}
    assert all(reason.startswith("not an image") for reason in found.unusable.values())
    assert recorded_progress.updates == [("images", done, 512, "") for done in range(1, 341)]


def test_a_plain_folder_is_read_as_training_reads_it(plain, untrained, tmp_path, recorded_progress):
    recorded_progress.step("images")
    plain = shutil.copytree(plain, tmp_path / "plain")
    for number, name in ((0, "000"), (1, "001.jfif")):
        (plain / f"{number:03}.png").rename(plain / name)
    (plain / "@eaDir").mkdir()
    (plain / "003.png").rename(plain / "@eaDir" / "003.png")
    found = make_calibration_set(plain, open_bundle(untrained), PREPROCESSING, NONE, progress=recorded_progress)
    assert len(found.pixels) == 339
    assert recorded_progress.messages[0].endswith("files and folders left out of the calibration:")
    assert "  @eaDir/: thumbnails of a NAS" in recorded_progress.messages
    assert found.source == "user images"


def test_a_seed_says_which_images_and_in_which_order(plain, untrained):
    bundle = open_bundle(untrained)
    one, same, other = (make_calibration_set(plain, bundle, PREPROCESSING, NONE, count=300, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert one.digest == same.digest
    assert one.digest != other.digest
    assert set(files_of(plain, one.pixels)) != set(files_of(plain, other.pixels))


def test_golden_images_and_copies_are_left_alone(plain, untrained, tmp_path, write_images):
    write_images(tmp_path / "more", 330)
    (tmp_path / "more" / "copy.png").write_bytes((tmp_path / "more" / "299.png").read_bytes())
    golden = np.stack([network_input(tmp_path / "more" / f"{number:03}.png") for number in range(20)])
    found = make_calibration_set(tmp_path / "more", open_bundle(untrained), PREPROCESSING, golden)
    names = files_of(tmp_path / "more", found.pixels)
    assert len(names) == len({image.tobytes() for image in found.pixels}) == 310
    assert not {f"{number:03}.png" for number in range(20)} & set(names)


def test_of_class_folders_only_training_images_are_taken_evenly(classes, untrained, trained_on):
    split = trained_on(untrained, classes, share=0.1)
    found = make_calibration_set(classes, open_bundle(untrained), PREPROCESSING, NONE, count=300)
    names = files_of(classes, found.pixels)
    assert found.source == "training images"
    assert set(names) <= {split.name(image) for image in split.train}
    assert not set(names) & {split.name(image) for image in split.val}
    counts = [sum(name.startswith(one) for name in names) for one in CLASSES]
    assert counts[2] == 54  # all there are
    assert sorted(counts[:2]) == [123, 123]


def test_of_a_folder_with_val_only_train_is_taken(untrained, trained_on, tmp_path, write_images):
    for label, name in enumerate(CLASSES):
        write_images(tmp_path / "data" / "train" / name, 110, seed=label)
        write_images(tmp_path / "data" / "val" / name, 110, seed=label + 50)
    trained_on(untrained, tmp_path / "data")
    found = make_calibration_set(tmp_path / "data", open_bundle(untrained), PREPROCESSING, NONE)
    names = files_of(tmp_path / "data", found.pixels)
    assert len(names) == 330
    assert all(name.startswith("train/") for name in names)


def test_validation_images_in_a_plain_folder_are_left_alone(plain, untrained):
    names = [f"{number:03}.png" for number in range(30)]
    validation = {pixels_fingerprint(network_input(plain / name)) for name in names}
    found = make_calibration_set(plain, open_bundle(untrained), PREPROCESSING, NONE, excluded=validation)
    assert set(files_of(plain, found.pixels)) == {f"{number:03}.png" for number in range(30, 340)}


def test_files_that_are_in_train_and_in_val_are_left_alone(
    untrained, trained_on, tmp_path, write_images, recorded_progress
):
    root = tmp_path / "data"
    for label, name in enumerate(CLASSES):
        write_images(root / "train" / name, 101, seed=label)
        (root / "val").mkdir(exist_ok=True)
        shutil.copytree(root / "train" / name, root / "val" / name)
        for number in range(6, 101):
            (root / "val" / name / f"{number:03}.png").unlink()
    trained_on(untrained, root)
    bundle = open_bundle(untrained)
    validation = {pixels_fingerprint(network_input(file)) for file in (root / "val").rglob("*.png")}
    recorded_progress.step("images")
    found = make_calibration_set(root, bundle, PREPROCESSING, NONE, excluded=validation, progress=recorded_progress)
    assert not {pixels_fingerprint(image) for image in found.pixels} & validation
    assert recorded_progress.messages == [
        f"calibration: {root} has 285 usable images among 303 training images (18 are among the validation images); "
        "with fewer than 300 the ranges may miss values of other images: compare the accuracy on validation images "
        "(--data), or add images"
    ]


def test_what_is_not_known_to_be_trained_on_is_not_called_so(untrained, trained_on, tmp_path, write_images):
    for label, name in enumerate(CLASSES):
        write_images(tmp_path / "data" / "train" / name, 110, seed=label)
        write_images(tmp_path / "data" / "val" / name, 3, seed=label + 50)
    trained_on(untrained, tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    (tmp_path / "other" / "train" / "ant" / "000.png").unlink()
    sources = {}
    for name in ("data", "other"):
        bundle = open_bundle(untrained)
        folder = load_training_dataset(tmp_path / name, bundle)
        sources[name] = {
            make_calibration_set(one, bundle, PREPROCESSING, NONE, count=300).source
            for one in (folder, tmp_path / name)
        }
    assert sources == {"data": {"training images"}, "other": {"images of train/ in other"}}


def test_only_what_is_chosen_is_decoded(plain, untrained, monkeypatch):
    opened = []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda source, index: opened.append(index) or read(source, index))
    make_calibration_set(plain, open_bundle(untrained), PREPROCESSING, NONE, count=300)
    assert 300 <= len(opened) <= 300 + 20 + 32


@pytest.mark.parametrize("count", [-1, 0, 513])
def test_the_number_of_images_has_bounds(plain, untrained, count):
    with pytest.raises(UsageError, match=f"calibration takes 1 to 512 images, not {count}"):
        make_calibration_set(plain, open_bundle(untrained), PREPROCESSING, NONE, count=count)


def test_few_images_calibrate_with_a_line_that_says_how_many_and_why(
    untrained, tmp_path, write_images, recorded_progress
):
    write_images(tmp_path / "few", 29)
    (tmp_path / "few" / "x.jpg").write_bytes(b"no")
    golden = network_input(tmp_path / "few" / "000.png")[None]
    bundle = open_bundle(untrained)
    recorded_progress.step("images")
    found = make_calibration_set(tmp_path / "few", bundle, PREPROCESSING, golden, progress=recorded_progress)
    assert len(found.pixels) == 28
    warning = recorded_progress.messages[-1]
    assert warning.startswith(f"calibration: {tmp_path / 'few'} has 28 usable images among 30 images (")
    assert "(1 is in the golden set; 1 cannot be used, for example x.jpg: not an image" in warning
    assert "with fewer than 300 the ranges may miss values" in warning


def test_files_that_cannot_be_used_are_told_by_their_reasons(untrained, tmp_path, write_images, recorded_progress):
    write_images(tmp_path / "some", 20)
    for number in range(12):
        (tmp_path / "some" / f"a{number:02}.jpg").write_bytes(b"no image")
    (tmp_path / "some" / "z.png").write_bytes((tmp_path / "some" / "000.png").read_bytes()[:60])
    recorded_progress.step("images")
    make_calibration_set(tmp_path / "some", open_bundle(untrained), PREPROCESSING, NONE, progress=recorded_progress)
    told = recorded_progress.messages
    assert told[0] == "13 files cannot be used for calibration:"
    assert told[1].startswith("  12 like a")
    assert told[2].startswith("  z.png: ")


def test_one_level_of_classes_calibrates_as_it_is(untrained, trained_on, tmp_path, write_images, recorded_progress):
    root = tmp_path / "data"
    for label, name in enumerate(CLASSES):
        write_images(root / "train" / name, 110, seed=label)
        write_images(root / "val" / name, 3, seed=label + 50)
    before = make_calibration_set(root / "train", open_bundle(untrained), PREPROCESSING, NONE)  # not trained yet
    trained_on(untrained, root)
    bundle = open_bundle(untrained)
    recorded_progress.step("images")
    found = make_calibration_set(root / "train", bundle, PREPROCESSING, NONE, progress=recorded_progress)
    assert (len(found.pixels), found.source, found.folder) == (330, "user images", "train")
    assert found.digest == before.digest
    assert recorded_progress.messages == []
    names = files_of(root / "train", found.pixels[:6])
    assert sorted(name.split("/")[0] for name in names) == sorted(2 * CLASSES)  # spread over the classes


def test_an_empty_folder_and_none_at_all(untrained, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 usable images among 0 images"):
        make_calibration_set(tmp_path / "empty", open_bundle(untrained), PREPROCESSING, NONE)
    with pytest.raises(DataError, match=r"no image folder at .*: it does not exist"):
        make_calibration_set(tmp_path / "nowhere", open_bundle(untrained), PREPROCESSING, NONE)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"no image folder at .*: it is a file"):
        make_calibration_set(tmp_path / "file", open_bundle(untrained), PREPROCESSING, NONE)


def test_folders_that_are_no_classes_are_used_and_named(classes, trained, recorded_progress):
    recorded_progress.step("images")
    bundle = open_bundle(trained)
    found = make_calibration_set(classes, bundle, PREPROCESSING, NONE, count=300, progress=recorded_progress)
    assert found.source == "user images"
    (line,) = recorded_progress.messages
    assert line.startswith("calibration: 1 of 3 folders in ")
    assert "no classes of the bundle, such as cat" in line


def test_a_split_folder_of_other_classes_is_refused(trained, tmp_path, write_images):
    for part in ("train", "val"):
        write_images(tmp_path / "data" / part / "cow", 3, seed=len(part))
        write_images(tmp_path / "data" / part / "hen", 3, seed=len(part) + 9)
    with pytest.raises(DataError, match=r"are not those of the bundle: .*café, dog, eel; give the training folder"):
        make_calibration_set(tmp_path / "data", open_bundle(trained), PREPROCESSING, NONE)


def test_the_digest_is_over_pixels_shape_and_preprocessing():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    changed = pixels.copy()
    changed[1, 2, 3, 0] ^= 1
    other = Preprocessing(resize=4, crop=4, mean=(0.5, 0.5, 0.5))
    digests = {
        calibration_digest(pixels, PREPROCESSING),
        calibration_digest(changed, PREPROCESSING),
        calibration_digest(pixels.reshape(1, 8, 4, 3), PREPROCESSING),
        calibration_digest(pixels, other),
    }
    assert len(digests) == 4
    assert calibration_digest(pixels[:, ::-1][:, ::-1], PREPROCESSING) == calibration_digest(pixels, PREPROCESSING)
