"""Parquet and Arrow files are read image by image, as `datasets` writes them and as others do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.images import arrow_tables
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import list_images, list_split
from regnet_deploy.images.split_listing import list_splits
from regnet_deploy.user_cache import cache_folder

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES: list[Any] = [{"bytes": b"one", "path": "a.png"}, {"bytes": b"three", "path": "c.png"}]
IMAGES += [{"bytes": b"", "path": "b.png"}, {"bytes": b"four", "path": "d.png"}]


def features(names: Sequence[str]) -> dict[str, str]:
    """The metadata in which `datasets` keeps its types."""
    found = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": found}})}


def table(
    labels: Sequence[Any] = (0, 1, 0, 1), images: Sequence[Any] = IMAGES, names: Sequence[str] = ("cat", "dog"), **more
):
    columns = {"image": pa.array(images, STRUCT), "label": pa.array(labels), **more}
    made = pa.table(columns)
    return made.replace_schema_metadata(features(names)) if names else made


def write(path: Path, content: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(content, path, **options)
    else:
        kind = options.pop("writer", pa.ipc.new_stream)
        with pa.OSFile(str(path), "wb") as sink, kind(sink, content.schema, **options) as writer:
            writer.write_table(content, max_chunksize=3)
    return path


def contents(source) -> dict[str, bytes]:
    return {name.split("/", 1)[1]: source.read(i) for i, name in enumerate(source.names)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.parquet", {"row_group_size": 3}),
        ("x.PARQUET", {"compression": "zstd"}),
        ("x.arrow", {}),
        ("x.arrow", {"writer": pa.ipc.new_file}),
    ],
)
def test_images_are_read_by_index(tmp_path: Path, name: str, options: dict[str, Any], recorded_progress) -> None:
    path = write(tmp_path / name.lower(), table(), **options).rename(tmp_path / name)
    found = list_images(path, progress=recorded_progress)
    assert found.train == {"cat": (f"{name}/a.png", f"{name}/b.png"), "dog": (f"{name}/c.png", f"{name}/d.png")}
    source = pickle.loads(pickle.dumps(found.source))
    assert contents(source) == {"a.png": b"one", "b.png": b"", "c.png": b"three", "d.png": b"four"}
    assert [source.stamp(i).size for i in range(4)] == [3, 0, 5, 4]
    assert (found.kind, found.root) == ("table", path)
    assert ("copying the images of 1 Parquet file" in recorded_progress.text) == (path.suffix != ".arrow")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.large_binary())])])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_images_are_bytes_or_a_struct_and_labels_are_text_or_numbers(
    tmp_path: Path, kind: pa.DataType, suffix: str
) -> None:
    values = [b"one", b"two", b"3", b"4"]
    images = pa.array([{"bytes": value} for value in values] if pa.types.is_struct(kind) else values, kind)
    labels = pa.array([" cat", "dog", "cat", "7"]).dictionary_encode()
    content = pa.table({"id": [1, 2, 3, 4], "img": images, "category": labels}).slice(1)
    found = list_images(write(tmp_path / f"x{suffix}", content))
    assert {label: [name[-1] for name in names] for label, names in found.train.items()} == {
        "7": ["2"],
        "cat": ["1"],
        "dog": ["0"],
    }
    assert sorted(contents(found.source).values()) == [b"3", b"4", b"two"]


def test_columns_are_named_behind_the_path_and_a_column_may_have_splits(tmp_path: Path) -> None:
    content = table([5, 6, 5, 6], names=(), kind=["x"] * 4, fold=["train", "dev", "train", None])
    path = write(tmp_path / "x.parquet", content.rename_columns(["photo", "a", "label", "fold"]))
    found = list_splits(f"{path}#label=a,split=fold")
    assert found.splits == {
        "train": {"5": ("x.parquet/a.png", "x.parquet/b.png")},
        "val": {"6": ("x.parquet/c.png",)},
    }
    assert found.left_out == {"x.parquet/d.png": "row 3: unlabeled"}
    assert list_splits(found.source.root).splits == found.splits
    with pytest.raises(DataError, match=r"row 0: the split 'x' is none of train, val and test"):
        list_images(f"{path}#label=a,split=label")


@pytest.mark.parametrize(
    "names",
    [
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/validation-00000-of-00001.parquet",
        ),
        ("train/data-00000-of-00001.arrow", "validation/data-00000-of-00001.arrow", "train/cache-1234.arrow"),
    ],
)
def test_folders_of_datasets_have_their_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        images = [{"bytes": value["bytes"], "path": f"{i}{value['path']}"} for value in IMAGES]
        write(tmp_path / name, table(images=images))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    (tmp_path / "README.md").write_text("x")
    found = list_images(tmp_path)
    used = [name for name in names if "cache" not in name]
    assert len(found.source.names) == 4 * len(used)
    assert found.origin("val") == "val of the table"
    assert {name.rsplit("/", 1)[0] for name in list_split(tmp_path).source.names} == {
        name for name in names if "valid" in name
    }
    pattern = f"{tmp_path}/{names[0]}::{tmp_path}/{names[-1 if 'cache' not in names[-1] else 1]}"
    assert len(list_images(pattern).source.names) == 8


def test_rows_that_cannot_be_used_are_left_out_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(b"a file")
    images = [*IMAGES[:2], None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.png"}]
    images += [{"bytes": None, "path": "beside.png"}, IMAGES[0], IMAGES[0]]
    path = write(tmp_path / "x.parquet", table([0, 1, 0, 0, 1, 1, -1, None], images))
    found = list_images(path)
    assert found.left_out == {
        "x.parquet/000000002": "row 2: no image",
        "x.parquet/000000003": "row 3: no image",
        "x.parquet/000000004": "row 4: no bytes, and no file gone.png",
        "x.parquet/000000006": "row 6: no label",
        "x.parquet/000000007": "row 7: no label",
    }
    assert contents(found.source) == {"000000000": b"one", "000000001": b"three", "000000005": b"a file"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table().drop_columns("label"), "has no label column, such as label or class: its columns are image"),
        (pa.table({"x": [1], "label": [1]}), "has no image column, such as path or image: its columns are x, label"),
        (pa.table({"image": [[1, 2]], "label": [1]}), "the image column 'image' of "),
        (table([None] * 4), "has no image that can be used; for example x.parquet/a.png: row 0: no label"),
        (table().slice(0, 0), "has no image that can be used"),
        (table([0.0, 1.0, 0.0, 1.0]), "the label column 'label' of "),
        (
            table([["a"], ["b"], ["a"], ["b"]]),
            "is of the type list<element: string>: it must have text or whole numbers",
        ),
        (b"no table", "cannot read the table "),
    ],
)
def test_each_fault_has_its_line(tmp_path: Path, content: pa.Table | bytes, message: str) -> None:
    path = tmp_path / "x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(DataError) as error:
        list_images(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"ARROW1 and no more", b"\xff\xff\xff\xff\x10\0\0\0"])
def test_a_damaged_arrow_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the table .*x\.arrow: \S"):
        list_images(tmp_path)


@pytest.mark.parametrize("offsets", [[0, 2**31 - 1, 10], [0, -5, 10], [0, 5, 2**30]])
def test_places_outside_of_the_file_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    content = pa.table({"image": pa.array([b"one", b"two"]), "label": ["first", "other"]})
    path = write(tmp_path / "x.arrow", content)
    before, after = (
        b"".join(each.to_bytes(4, "little", signed=True) for each in some) for some in ([0, 5, 10], offsets)
    )
    assert before in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(DataError, match=r"cannot read the table .*x\.arrow: Offset invariant failure"):
        list_images(path)


@pytest.mark.parametrize(("first", "second"), [("/a.png", "a.png"), (1, 1), (b"\xff", None)])
def test_paths_that_name_no_image_alone_are_replaced_by_rows(tmp_path: Path, first: Any, second: Any) -> None:
    images = pa.array([{"bytes": b"one", "path": first}, {"bytes": b"two", "path": second}])
    found = list_images(write(tmp_path / "x.arrow", pa.table({"image": images, "label": ["a", "b"]})))
    assert found.train == {"a": ("x.arrow/000000000",), "b": ("x.arrow/000000001",)}


@pytest.mark.parametrize("kept", [["x"], {"label": {"names": [1, None], "_type": "ClassLabel"}}])
def test_types_of_datasets_that_are_none_are_ignored(tmp_path: Path, kept: Any) -> None:
    content = table(names=()).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kept}})})
    assert list(list_images(write(tmp_path / "x.arrow", content)).train) == ["0", "1"]


def test_compressed_arrow_files_are_refused(tmp_path: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    images = [{"bytes": bytes(5000), "path": "a.png"}] * 4
    with pytest.raises(DataError, match="its values are compressed: write it without compression, or as Parquet"):
        list_images(write(tmp_path / "x.arrow", table(images=images), options=options))


def test_a_parquet_file_is_copied_once_until_it_changes(tmp_path: Path, recorded_progress) -> None:
    path, cache = write(tmp_path / "x.parquet", table()), tmp_path / "cache.jsonl"
    before = check_images(list_images(path).source, cache)
    copy = arrow_tables._copy_of(path)
    list_images(path, progress=recorded_progress)
    assert "copying" not in recorded_progress.text
    write(path, table(images=[*IMAGES[:3], {"bytes": b"FOUR", "path": "d.png"}]))
    source = list_images(path).source
    after = check_images(source, cache)
    assert [name for name in before if before[name].sha256 != after[name].sha256] == ["x.parquet/d.png"]
    assert not copy.exists()
    assert not list(cache_folder("tables").glob("*.arrow.*"))
    arrow_tables._copy_of(path).unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        source.read(0)


def test_a_copy_that_another_process_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", table())
    source = list_images(path).source
    exists = iter([False])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: next(exists, True))
        arrow_tables._copied(path)
    assert source.read(0) == b"one"  # the file that it was found in is there still
    assert not list(cache_folder("tables").glob("*.arrow.*"))


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", table())
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(DataError, match=r"cannot write .*: Not a directory; set XDG_CACHE_HOME to a folder with space"):
        list_images(path)


def test_a_copy_stops_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write(tmp_path / "x.parquet", table())
    abandoned = arrow_tables._copy_of(path).with_name(f"{arrow_tables._copy_of(path).name}.killed")
    abandoned.parent.mkdir(parents=True, exist_ok=True)
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (0, 0))
    usage = shutil.disk_usage(tmp_path)._replace(free=path.stat().st_size)
    with monkeypatch.context() as patch:
        patch.setattr(arrow_tables.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DataError, match=r"has no space for the images of .*x\.parquet: set XDG_CACHE_HOME"):
            list_images(path)
    assert not list(cache_folder("tables").iterdir())


def test_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", table())
    write(tmp_path / "y.arrow", table())
    with pytest.raises(DataError, match=r"has \.parquet and \.arrow files: give those of one kind"):
        list_images(tmp_path)
