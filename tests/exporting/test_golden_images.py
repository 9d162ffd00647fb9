import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Golden, Preprocessing
from regnet_deploy.errors import BundleError, DataError, ProofError
from regnet_deploy.exporting.golden_images import MAX_USER_IMAGES, golden_logits, make_golden_set, noise_images
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.models.weights import load_model
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes


def golden_of(path, *images):
    bundle = open_bundle(path)
    return make_golden_set(bundle, load_model(bundle), Preprocessing.from_json(bundle.parts["preprocessing"]), images)


def picture(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_after_training_it_is_sixteen_of_the_samples_spread_evenly(trained):
    made = golden_of(trained)
    samples = load(open_bundle(trained).read("samples.safetensors"))["images"]
    np.testing.assert_array_equal(made.golden.images, samples[[i * 40 // 16 for i in range(16)]])
    weights = open_bundle(trained).files["weights.safetensors"].sha256
    assert made.record == Golden(images=16, source="training images", seed=None, weights_sha256=weights)


def test_before_training_it_is_seeded_noise_and_says_so(untrained):
    made = golden_of(untrained)
    assert made.record == Golden(images=16, source="seeded noise", seed=0, weights_sha256=None)
    np.testing.assert_array_equal(made.golden.images, noise_images(16, 32, 0))
    assert golden_of(untrained).data == made.data


def test_noise_images_differ_from_each_other():
    images = noise_images(16, 32, 0).astype(int)
    assert images.shape == (16, 32, 32, 3)
    assert min(np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]) > 30


def test_the_users_images_are_seen_as_the_network_sees_them(trained, tmp_path):
    single, folder = picture(tmp_path / "one.png", 1), tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    picture(folder / "b.jpg", 2)
    picture(folder / "deeper" / "a.PNG", 3)
    (folder / "notes.txt").write_text("not an image, not asked for")
    made = golden_of(trained, single, folder)
    preprocessing = Preprocessing.from_json(open_bundle(trained).parts["preprocessing"])
    expected = [
        load_pixels(path.read_bytes(), preprocessing)
        for path in (single, folder / "b.jpg", folder / "deeper" / "a.PNG")
    ]
    np.testing.assert_array_equal(made.golden.images[:3], np.stack(expected))


def test_few_images_of_the_users_are_filled_up_with_those_of_training(trained, tmp_path):
    made = golden_of(trained, picture(tmp_path / "one.png"))
    samples = load(open_bundle(trained).read("samples.safetensors"))["images"]
    np.testing.assert_array_equal(made.golden.images[1:], samples[[i * 40 // 15 for i in range(15)]])
    assert (made.record.images, made.record.source) == (16, "user images, filled up with training images")


def test_many_images_of_the_users_are_left_alone_and_so_are_few_without_samples(trained, untrained, tmp_path):
    for i in range(16):
        picture(tmp_path / f"{i}.png", i)
    assert golden_of(trained, tmp_path).record.source == "user images"
    update_bundle(trained, {}, drop=("samples.safetensors",))
    made = golden_of(trained, tmp_path / "3.png")
    assert (made.record.images, made.record.source) == (1, "user images")


def test_a_name_that_is_too_long_is_one_line(trained, tmp_path):
    with pytest.raises(DataError, match="File name too long"):
        golden_of(trained, tmp_path / ("x" * 300 + ".png"))


def test_of_very_many_images_some_are_taken_evenly(trained, tmp_path):
    for i in range(MAX_USER_IMAGES * 2):
        picture(tmp_path / f"{i:03}.png", i)
    made = golden_of(trained, tmp_path)
    assert made.record.images == MAX_USER_IMAGES


@pytest.mark.parametrize(
    ("name", "content"), [("broken.png", b"\x89PNG broken"), ("text.jpg", b"hello"), ("e.png", b"")]
)
def test_a_bad_image_is_refused_where_it_was_named_and_left_out_of_a_folder(trained, tmp_path, name, content):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        golden_of(trained, tmp_path / "images" / name)
    with pytest.raises(DataError, match="none of the 1 files can be used, for example"):
        golden_of(trained, tmp_path / "images")
    picture(tmp_path / "images" / "fine.png")
    made = golden_of(trained, tmp_path / "images")
    assert list(made.skipped) == [str(tmp_path / "images" / name)]
    assert str(tmp_path) not in str(made.record)


def test_a_folder_is_read_as_training_reads_it(trained, tmp_path):
    for seed, name in enumerate(("one.jfif", "noext", "@eaDir/thumb.jpg")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "x.png", seed).rename(tmp_path / "images" / name)
    (tmp_path / "images" / "note.txt").write_text("hello")
    made = golden_of(trained, tmp_path / "images")
    assert list(made.skipped) == [f"{tmp_path}/images/@eaDir/", f"{tmp_path}/images/note.txt"]  # each with its reason
    seen = {image.tobytes() for image in made.golden.images}
    views = [
        load_pixels((tmp_path / "images" / name).read_bytes(), open_bundle(trained).preprocessing).tobytes()
        for name in ("one.jfif", "noext", "@eaDir/thumb.jpg")
    ]
    assert [view in seen for view in views] == [True, True, False]


def test_a_missing_image_and_a_folder_without_any_are_named(trained, tmp_path):
    with pytest.raises(DataError, match=r"none\.png: cannot be read: No such file"):
        golden_of(trained, tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images in this folder"):
        golden_of(trained, tmp_path / "empty")


def test_the_users_images_are_kept_until_the_weights_change(trained, tmp_path):
    made = golden_of(trained, picture(tmp_path / "one.png"))
    update_bundle(trained, {"golden": made.record}, {"golden.safetensors": made.data})
    again = golden_of(trained)
    assert (again.data, again.record) == (made.data, made.record)
    other = load(open_bundle(trained).read("weights.safetensors"))
    other["head.fc.bias"] += 1
    update_bundle(trained, {}, {"weights.safetensors": save(other)})
    assert golden_of(trained).record.source == "training images"


@pytest.mark.parametrize("given", [False, True])
def test_answers_to_the_same_images_by_the_same_weights_stay_to_the_last_bit(trained, tmp_path, given):
    """Another CPU sums in another order: what was proved on the set would be of another set."""
    images = [picture(tmp_path / "one.png")] if given else []
    made = golden_of(trained, *images)
    elsewhere = golden_to_bytes(GoldenSet(made.golden.images, np.nextafter(made.golden.logits, np.float32(np.inf))))
    update_bundle(trained, {"golden": made.record}, {"golden.safetensors": elsewhere})
    again = golden_of(trained, *images)
    assert (again.data, again.record) == (elsewhere, made.record)
    other = golden_of(trained, picture(tmp_path / "two.png", 2))
    assert other.data not in (elsewhere, made.data)
    weights = load(open_bundle(trained).read("weights.safetensors"))
    weights["head.fc.bias"] += 1
    update_bundle(trained, {}, {"weights.safetensors": save(weights)})
    np.testing.assert_allclose(golden_of(trained, *images).golden.logits, made.golden.logits + 1, rtol=1e-3, atol=1e-4)


def test_a_damaged_set_is_made_again(trained):
    made = golden_of(trained)
    update_bundle(trained, {"golden": made.record}, {"golden.safetensors": b"damaged"})
    assert golden_of(trained).data == made.data


def test_before_training_answers_are_computed_anew(untrained):
    made = golden_of(untrained)
    elsewhere = golden_to_bytes(GoldenSet(made.golden.images, made.golden.logits + 1))
    update_bundle(untrained, {"golden": made.record}, {"golden.safetensors": elsewhere})
    assert golden_of(untrained).data == made.data


def test_logits_of_an_image_do_not_depend_on_its_company_or_on_threads(trained):
    bundle = open_bundle(trained)
    model, preprocessing = load_model(bundle), Preprocessing.from_json(bundle.parts["preprocessing"])
    images = noise_images(5, 32, 1)
    together = golden_logits(model, images, preprocessing)
    torch.set_num_threads(2)
    alone = np.concatenate([golden_logits(model, images[i : i + 1], preprocessing) for i in range(5)])
    assert torch.get_num_threads() == 2
    np.testing.assert_array_equal(together, alone)
    with torch.inference_mode():
        batch = model(torch.from_numpy(normalize(images, preprocessing))).numpy()
    np.testing.assert_allclose(together, batch, rtol=1e-4, atol=1e-5)


def test_logits_that_are_not_finite_prove_nothing(trained):
    bundle = open_bundle(trained)
    model, preprocessing = load_model(bundle), Preprocessing.from_json(bundle.parts["preprocessing"])
    with torch.no_grad():
        model.head.fc.bias[0] = float("nan")
    with pytest.raises(ProofError, match="not finite"):
        golden_logits(model, noise_images(1, 32, 0), preprocessing)


@pytest.mark.parametrize(
    "samples", [b"not safetensors", save({"images": np.zeros((4, 8, 8, 3), np.uint8)}), save({"other": np.zeros(3)})]
)
def test_samples_of_another_shape_or_kind_are_refused(trained, samples):
    update_bundle(trained, {}, {"samples.safetensors": samples})
    with pytest.raises(BundleError, match="does not contain RGB images of 32x32 pixels"):
        golden_of(trained)
