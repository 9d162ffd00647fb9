"""A bundle is whole at every moment, and any changed byte is found."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.bundle import MANIFEST, create_bundle, find_damage, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.errors import BundleError, MissingPart
from regnet_deploy.space.network import Network

#: A bundle with every part that export and profile write.
EXPORTED = open_bundle(Path(__file__).parents[1] / "fixtures" / "bundles" / "exported")
NETWORK = Network((1,), (8,), (8,), (1.0,))
PARTS = {
    "architecture": Architecture.of(NETWORK, name="größte", classes=10, resolution=32).to_json(),
    "preprocessing": {"resize": 32, "crop": 32},
}


@pytest.fixture
def bundle(tmp_path):
    create_bundle(tmp_path / "b", PARTS)
    return update_bundle(tmp_path / "b", {"labels": ["a", "b"]}, {"weights.safetensors": b"w" * 1000})


def test_what_was_written_is_read(bundle):
    again = open_bundle(bundle.path)
    assert again.parts == {**PARTS, "labels": ["a", "b"]}
    assert again.architecture.name == "größte"
    assert again.read("weights.safetensors") == b"w" * 1000
    assert find_damage(again) == []


def test_an_update_replaces_its_part_and_keeps_the_others(bundle):
    now = update_bundle(bundle.path, {"labels": ["c"]}, {"weights.safetensors": b"v"}, drop=("preprocessing",))
    assert now.labels == ("c",)
    assert now.read("weights.safetensors") == b"v"
    assert now.manifest.preprocessing is None
    assert find_damage(now) == []
    assert len(list(bundle.path.iterdir())) == 3  # manifest, its copy, weights: the old weights are gone


def test_a_missing_part_names_the_command_that_makes_it(tmp_path):
    made = create_bundle(tmp_path / "b", PARTS)
    with pytest.raises(MissingPart, match=r"has no profile yet: run `regnet-deploy profile \S+/b` first"):
        assert made.profile
    with pytest.raises(MissingPart, match=r"/b is not exported yet: run `regnet-deploy export --onnx \S+/b` first"):
        made.read("golden.safetensors")
    with pytest.raises(
        MissingPart, match=r"has no weights\.safetensors yet: run `regnet-deploy train --data DIR \S+` first"
    ):
        made.read("weights.safetensors")


def test_a_bundle_with_weights_is_not_started_anew_unasked(bundle):
    with pytest.raises(BundleError, match=r"already holds weights\.safetensors: choose another folder"):
        create_bundle(bundle.path, PARTS)
    assert open_bundle(bundle.path).read("weights.safetensors") == b"w" * 1000
    assert not create_bundle(bundle.path, PARTS, replace=True).files


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        create_bundle(tmp_path / "photos", PARTS)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip") / "b"
    create_bundle(folder, PARTS)
    update_bundle(folder, {}, {"weights.safetensors": b"w" * 50, "golden.safetensors": b"g" * 50})
    target = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(target.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    target.write_bytes(content)
    try:
        problems = find_damage(open_bundle(folder))
    except BundleError as error:
        problems = [str(error)]
    assert problems


def test_missing_truncated_and_stray_files_are_found(bundle):
    weights = bundle.stored_path("weights.safetensors")
    weights.write_bytes(b"w" * 999)
    (bundle.path / "notes.txt").write_text("hello")
    assert len(find_damage(bundle)) == 2
    weights.unlink()
    assert "cannot read" in find_damage(bundle)[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"not json", "damaged"),
        (b"[]", "damaged"),
        (b'{"schema": 1}', "damaged"),
        (b'{"schema": 1, "parts": {}, "files": [], "sha256": ""}', "damaged"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema": 1, "parts": {"a": 1e400}, "files": {}, "sha256": ""}', "damaged"),
        (b'{"schema": 99}', "has schema 99, this regnet-deploy reads up to 1"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_clear_line(tmp_path, content, said):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=said):
        open_bundle(tmp_path)


def test_stages_that_cannot_be_built_are_found_when_the_bundle_is_opened(bundle):
    from regnet_deploy.bundle.reading import serialize

    parts = {**bundle.parts, "architecture": {**bundle.parts["architecture"], "depths": [1, 1]}}
    (bundle.path / MANIFEST).write_bytes(serialize(parts, bundle.files))
    with pytest.raises(BundleError, match=r"architecture: .* one value for each stage, got depths 1, 1; widths 8;"):
        open_bundle(bundle.path)


def test_a_file_name_never_leads_out_of_the_folder(bundle):
    from regnet_deploy.bundle.reading import StoredFile, serialize

    files = {"weights.safetensors": StoredFile("../../etc/passwd", "0" * 64, 1)}
    (bundle.path / MANIFEST).write_bytes(serialize(bundle.parts, files))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(("make", "said"), [(False, "does not exist"), (True, "is a folder without bundle.json")])
def test_no_bundle_names_the_command_that_makes_one(tmp_path, make, said):
    if make:
        (tmp_path / "b").mkdir()
    for use in (open_bundle, lambda path: update_bundle(path, {})):
        with pytest.raises(BundleError, match=f"{said}; make one with `regnet-deploy select"):
            use(tmp_path / "b")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_path_that_select_would_refuse_is_not_advised(tmp_path, kind):
    path = tmp_path / "images" if kind == "folder" else tmp_path / "b"
    if kind == "folder":
        path.mkdir()
    (path / "cat.jpg" if kind == "folder" else path).write_bytes(b"x")
    with pytest.raises(BundleError, match="select --gflops 4 -o FOLDER`"):
        open_bundle(path)


def test_an_update_based_on_other_weights_writes_nothing(bundle):
    update_bundle(bundle.path, {}, {"weights.safetensors": b"new"})
    with pytest.raises(BundleError, match="changed by another command meanwhile"):
        update_bundle(bundle.path, {"variants": EXPORTED.variants}, expect=bundle)
    assert not open_bundle(bundle.path).manifest.variants


def test_a_part_that_another_command_replaced_meanwhile_is_not_lost(bundle):
    one, another = ({name: EXPORTED.variants["onnx-fp32"]} for name in ("a", "b"))
    update_bundle(bundle.path, {"variants": one}, expect=bundle)
    with pytest.raises(BundleError, match="changed by another command meanwhile"):
        update_bundle(bundle.path, {"variants": another}, expect=bundle)
    assert open_bundle(bundle.path).variants == one


def test_each_command_adds_its_entry_to_the_environment(bundle):
    update_bundle(bundle.path, {"environment": {"train": {"torch": "2"}}}, expect=bundle)
    now = update_bundle(bundle.path, {"environment": {"profile": {"torch": "3"}}}, expect=bundle)
    assert now.manifest.environment == {"train": {"torch": "2"}, "profile": {"torch": "3"}}


def test_weights_that_another_command_is_writing_are_not_lost_to_select(bundle):
    """`select` waits for the writer and then sees its weights."""
    code = (
        "import sys, time; from regnet_deploy.bundle import writing as module\n"
        "write = module.write_whole\n"
        "def slow(path, data):\n"
        "    print('writing', flush=True); time.sleep(0.5); write(path, data)\n"
        "module.write_whole = slow\n"
        "module.update_bundle(sys.argv[1], {}, {'weights.safetensors': b'precious'})"
    )
    folder = bundle.path.parent / "new"
    create_bundle(folder, PARTS)
    writer = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
    writer.stdout.readline()
    with pytest.raises(BundleError, match="already holds weights"):
        create_bundle(folder, PARTS)
    assert writer.wait() == 0
    writer.stdout.close()
    assert open_bundle(folder).read("weights.safetensors") == b"precious"


def test_an_entry_of_the_environment_goes_with_its_part(bundle):
    update_bundle(bundle.path, {"profile": EXPORTED.profile, "environment": {"profile": {}, "train": {}}})
    now = update_bundle(bundle.path, {}, drop=("profile",))
    assert now.manifest.environment == {"train": {}}


def test_a_full_disk_leaves_the_bundle_before(bundle):
    # A limit on file size makes write() fail with the operating system's own error, in a process of its own.
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    code = (
        "import sys; from regnet_deploy.bundle import update_bundle; from regnet_deploy.errors import BundleError\n"
        "try: update_bundle(sys.argv[1], {}, {'weights.safetensors': b'x' * 100000})\n"
        "except BundleError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle.path], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "nothing was changed" in done.stdout
    assert open_bundle(bundle.path) == bundle
    assert find_damage(bundle) == []


@contextlib.contextmanager
def not_root():
    """Root may write anywhere: act as nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_bundle_is_one_clear_line():
    with tempfile.TemporaryDirectory() as parent:  # pytest's own folders are closed to others
        Path(parent).chmod(0o755)
        before = create_bundle(Path(parent) / "b", PARTS)
        before.path.chmod(0o555)
        with not_root():
            with pytest.raises(BundleError, match="Permission denied; nothing was changed"):
                update_bundle(before.path, {"labels": []})
            with pytest.raises(BundleError, match="Permission denied; nothing was changed"):
                create_bundle(Path(parent) / "new", PARTS)
            assert open_bundle(before.path) == before
        before.path.chmod(0o755)


def test_killed_at_any_moment_the_bundle_is_the_one_before_or_after(tmp_path):
    folder = tmp_path / "b"
    create_bundle(folder, PARTS)
    code = (
        "import sys; from regnet_deploy.bundle import update_bundle\n"
        "print('go', flush=True); n = 0\n"
        "while True:\n"
        "    n += 1; update_bundle(sys.argv[1], {'labels': [str(n)]}, {'weights.safetensors': b'%d' % n * 20000})"
    )
    for seed in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.0, 0.15))
        process.kill()
        process.wait()
        process.stdout.close()
        now = open_bundle(folder)
        assert find_damage(now) == []
        if now.manifest.labels:
            assert now.read("weights.safetensors") == now.labels[0].encode() * 20000
    update_bundle(folder, {})
    assert find_damage(open_bundle(folder)) == []  # what the kills left behind is swept


def test_two_writers_do_not_lose_each_others_parts(tmp_path):
    folder = tmp_path / "b"
    create_bundle(folder, PARTS)
    code = (
        "import sys; from regnet_deploy.bundle import update_bundle\n"
        "for n in range(20): update_bundle(sys.argv[1], {f'{sys.argv[2]}{n}': n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, folder, name]) for name in "pq"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(open_bundle(folder).parts) == len(PARTS) + 40


def test_the_manifest_reads_well_and_holds_no_machine_path(bundle):
    text = (bundle.path / MANIFEST).read_text(encoding="utf-8")
    assert json.loads(text)["schema"] == 1
    assert str(bundle.path.parent) not in text


@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_what_stands_in_the_place_of_a_file_is_neither_waited_for_nor_read_without_end(tmp_path: Path, what: str):
    bundle = create_bundle(tmp_path / "b", PARTS, replace=True)
    bundle = update_bundle(bundle.path, {}, {"x.onnx": b"abc"})
    for path in (bundle.stored_path("x.onnx"), bundle.path / "bundle.json"):
        path.unlink()
        if what == "a pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.read("x.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(bundle.path)
