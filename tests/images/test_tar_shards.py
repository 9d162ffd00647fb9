"""Tar shards are searched once, and their images are read in any order."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images import byte_ranges, tar_index
from regnet_deploy.images.decode import ImageError
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import list_images, list_split, own_splits
from regnet_deploy.images.split_listing import list_splits
from regnet_deploy.user_cache import cache_folder

SAMPLES = {"a.png": b"first", "a.cls": b"cat", "b.png": b"second", "b.cls": b"dog\n", "c.png": b"3rd", "c.cls": b"cat"}


def shard(path: Path, members: dict[str, bytes] = SAMPLES, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header of a member with this size, which no library would write."""
    number = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    start = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + number + b"00000000000\0"
    rest = (kind + bytes(100) + b"ustar\00000").ljust(512 - len(start) - 8, b"\0")
    return start + b"%06o\0 " % sum(start + b" " * 8 + rest) + rest


def contents(source) -> dict[str, bytes]:
    return {name: source.read(i) for i, name in enumerate(source.names)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_by_index_from_every_form_of_tar(tmp_path: Path, form: int) -> None:
    deep = f"{'folder/' * 13}z" if form != tarfile.USTAR_FORMAT else "folder/z"
    members = {**SAMPLES, f"{deep}.JPG": b"deep", f"{deep}.cls": b"dog", "empty/": b""}
    found = list_images(shard(tmp_path / "0.tar", members, form))
    assert found.train == {"cat": ("0.tar/a.png", "0.tar/c.png"), "dog": ("0.tar/b.png", f"0.tar/{deep}.JPG")}
    copy = pickle.loads(pickle.dumps(found.source))
    assert contents(copy) == {
        "0.tar/a.png": b"first",
        "0.tar/c.png": b"3rd",
        "0.tar/b.png": b"second",
        f"0.tar/{deep}.JPG": b"deep",
    }
    assert (found.kind, found.root) == ("tar shards", tmp_path / "0.tar")
    assert [copy.stamp(i).size for i in range(4)] == [5, 3, 6, 4]


@pytest.mark.parametrize(
    ("suffix", "content", "label"),
    [
        (".cls", b"7", "7"),
        (".cls", b"\xef\xbb\xbf big  dog\r\n", "big dog"),
        (".txt", "caf\u00e9".encode(), "caf\u00e9"),
        (".json", b'{"label": 3, "url": "x"}', "3"),
        (".json", b'{"caption": "x", "class_name": "eel"}', "eel"),
        (".json", b'"eel"', "eel"),
        (".json", b'"half \\ud800"', "half \\ud800"),
    ],
)
def test_a_class_is_text_or_json(tmp_path: Path, suffix: str, content: bytes, label: str) -> None:
    found = list_images(shard(tmp_path / "0.tar", {"x.jpg": b"x", f"x{suffix}": content}))
    assert found.train == {label: ("0.tar/x.jpg",)}


def test_of_several_members_with_a_class_the_first_kind_counts(tmp_path: Path) -> None:
    members = {"x.jpg": b"x", "x.txt": b"a caption", "x.cls": b"4", "x.json": b'{"label": 5}'}
    members |= {"y.jpg": b"y", "y.txt": b"eel", "y.json": b"{}"}
    assert list(list_images(shard(tmp_path / "0.tar", members)).train) == ["4", "eel"]


def test_the_key_ends_at_the_first_dot_or_the_last(tmp_path: Path) -> None:
    members = {"n/v1.5.png": b"x", "n/v1.5.cls": b"cat", "n.x/1.png": b"y", "n.x/1.cls": b"dog"}
    assert list_images(shard(tmp_path / "0.tar", members)).train == {
        "cat": ("0.tar/n/v1.5.png",),
        "dog": ("0.tar/n.x/1.png",),
    }


def test_members_that_cannot_be_used_are_left_out_with_a_reason(tmp_path: Path) -> None:
    members = {**SAMPLES, "no.png": b"x", "two.png": b"x", "two.jpg": b"x", "two.cls": b"1", "alone.cls": b"1"}
    members |= {"e.png": b"x", "e.cls": b" \n", "bin.png": b"x", "bin.cls": b"\xff", "j.png": b"x", "j.json": b"{"}
    members |= {"k.png": b"x", "k.json": b'{"label": true}', "t.png": b"x", "t.txt": b"word " * 50, "read.me": b"x"}
    path = shard(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(link)
        again = tarfile.TarInfo("a.png")
        again.size = 3
        archive.addfile(again, io.BytesIO(b"new"))
    found = list_images(path)
    assert {name.removeprefix("0.tar/"): reason for name, reason in found.left_out.items()} == {
        "no.png": "no class: no.cls, .txt or .json is missing",
        "two.png": "2 images have one key",
        "two.jpg": "2 images have one key",
        "alone.cls": "a class without an image",
        "e.png": "no class: e.cls is empty",
        "bin.png": "no class: bin.cls is not UTF-8",
        "j.png": "no class: j.json is no JSON",
        "k.png": "no class: k.json has none of label, class, cls, class_name, label_name, category, target",
        "t.png": "no class: t.txt has more than 200 characters, as captions have",
        "link.png": "a link or a sparse file, not a plain one",
        "a.png#2": "in the shard twice: the first one is read",
    }
    assert contents(found.source)["0.tar/a.png"] == b"first"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-000.tar", "train-001.tar", "val-000.tar"), {"train": 2, "val": 1}),
        (("train/0.tar", "validation/0.tar", "test/0.tar"), {"train": 1, "val": 1, "test": 1}),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), {"train": 1, "val": 1}),
        (("000000.tar", "000001.tar"), {"train": 2}),
        (("0.tar", "val-0.tar"), {"train": 1, "val": 1}),
    ],
)
def test_splits_are_told_by_names_of_shards_and_folders(
    tmp_path: Path, names: tuple[str, ...], splits: dict[str, int]
) -> None:
    for name in names:
        shard(tmp_path / name)
    found = list_splits(tmp_path)
    shards = {split: {name.split("/a.")[0] for name in classes["cat"]} for split, classes in found.splits.items()}
    assert {split: sum("a.png" in name for name in found.splits[split]["cat"]) for split in shards} == splits
    assert own_splits(tmp_path) == (() if len(splits) == 1 else tuple(splits))


def test_shards_beside_named_splits_are_left_out(tmp_path: Path) -> None:
    for name in ("train-0.tar", "val-0.tar", "more-0.tar", "unlabeled-0.tar"):
        shard(tmp_path / name)
    assert list_images(tmp_path).left_out == {
        "more-0.tar": "neither for training nor for validation",
        "unlabeled-0.tar": "unlabeled",
    }
    assert list_split(tmp_path).source.names[0] == "val-0.tar/a.png"


def test_patterns_and_lists_name_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(8, 12):
        shard(tmp_path / "shards" / f"x-{i:03d}.tar")
    monkeypatch.chdir(tmp_path)
    for value in (
        "shards/x-{008..011}.tar",
        f"{tmp_path}/shards/x-0{{08,09,10,11}}.tar",
        Path("shards/x-{008..011}.tar"),
    ):
        found = list_images(value)
        assert len(found.source.names) == 12
        assert found.source.names[0] == "x-008.tar/a.png"
        monkeypatch.chdir("/")
        assert list_images(found.root).source.names == found.source.names  # a run remembers it by this
        monkeypatch.chdir(tmp_path)
    one = list_images("shards/x-008.tar::shards/x-{010..011}.tar")
    assert {name.split("/")[0] for name in one.source.names} == {"x-008.tar", "x-010.tar", "x-011.tar"}
    monkeypatch.chdir("/")
    assert list_images(one.root).source.names == one.source.names


def test_a_pattern_over_folders_names_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shard(tmp_path / split / "0.tar")
    assert list_images(f"{tmp_path}/{{train,val}}/0.tar").origin("val") == "val of the tar shards"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x-{000..009}.tar", "9 of the 10 files of x-{000..009}.tar do not exist, such as "),
        ("x-{009..000}.tar", "is empty or has more than 100,000 numbers"),
        ("x-{000..999999}.tar", "is empty or has more than 100,000 numbers"),
        ("x-{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar", "names more than 100,000 files"),
        ("x-{000,000}.tar", "names x-000.tar twice"),
        ("x-{{0,1}.tar", "the braces of x-{{0,1}.tar do not match"),
        ("x-{0,1}{0}.tar", "{0} of x-{0,1}{0}.tar is no range"),
        ("x-000.tar::", "a list of files has an empty name"),
        ("x-{0,1}.zip", "names x-0.zip: a pattern or list is one of .tar, .parquet, .arrow files"),
    ],
)
def test_patterns_that_name_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    shard(tmp_path / "x-000.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, UsageError)) as error:
        list_images(value)
    assert message in str(error.value)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "whole.tar", {f"{i}.{suffix}": b"x" * 600 for i in range(4) for suffix in ("png", "bin")})
    data = whole.read_bytes()
    cases = {
        "is no tar archive": b"\x89PNG" * 300,
        "is no tar archive: empty file": b"",
        "is compressed with gzip, and its images could not be read one by one": gzip.compress(data),
        "is damaged or cut short after 3 members (unexpected end of data)": data[: 3 * 1536 - 700],
        "is damaged or cut short after 3 members (no header at byte 4,608)": data[:4608] + b"\7" * 512 + data[5120:],
        "is damaged or cut short after 3 members (no end mark)": data[: 3 * 1536],
        "is damaged or cut short after 1 members (0.png has a negative size)": header(b"0.png", -512) + data,
        "is no tar archive: a header has an impossible size": header(b"x", 2**62, b"L") + data,
        "is no tar archive: cannot fit 'int' into an index-sized integer": header(b"x", 2**80, b"x") + data,
        "is no tar archive: maximum recursion depth": (header(b"x", 10, b"x") + b"10 a=bbbb\n".ljust(512, b"\0"))
        * 1500,
    }
    for i, (message, content) in enumerate(cases.items()):
        path = tmp_path / f"{i}.tar"
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            list_images(path)
        assert message in str(error.value)
    with pytest.raises(DataError, match=r"has no image with a class, KEY.jpg and KEY.cls, .*whole.tar/0.png: no class"):
        list_images(whole)


def test_an_unreadable_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "gone.tar").symlink_to(tmp_path / "nothing.tar")
    with pytest.raises(DataError, match=r"cannot read the shard .*gone\.tar: No such file"):
        list_images(tmp_path / "shards")


def test_class_folders_with_an_archive_beside_them_are_class_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    shard(tmp_path / "backup.tar")
    found = list_images(tmp_path)
    assert list(found.train) == ["cat", "dog"]
    assert found.left_out == {"backup.tar": "not in a class folder"}


def test_numbers_get_names_from_a_file_beside_the_shards(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", {"a.png": b"x", "a.cls": b"0", "b.png": b"y", "b.cls": b"2"})
    assert list(list_images(tmp_path).train) == ["0", "2"]
    names = tmp_path / "classnames.txt"
    names.write_text("cat\neel\n dog \n")
    assert list_images(tmp_path).train == {"cat": ("0.tar/a.png",), "dog": ("0.tar/b.png",)}
    names.write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"classnames.txt has no name for class 2, its line 3: it has 2"):
        list_images(tmp_path)
    names.write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"has the class 'cat' in line 1 and in line 3"):
        list_images(tmp_path)


def test_a_shard_is_searched_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = tar_index._search
    monkeypatch.setattr(tar_index, "_search", lambda *given: searched.append(given[0]) or search(*given))
    path = shard(tmp_path / "0.tar")
    first, again = list_images(path), list_images(path)
    assert (len(searched), contents(again.source)) == (1, contents(first.source))
    shard(path, {**SAMPLES, "b.png": b"other, longer"})
    assert contents(list_images(path).source)["0.tar/b.png"] == b"other, longer"
    assert len(searched) == 2
    (cache,) = cache_folder("shard-indices").glob(f"{tar_index.hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}*")
    cache.write_text('{"version": 1, "stamp": [1')
    list_images(path)
    assert len(searched) == 3
    assert json.loads(cache.read_text())["version"] == 1


def test_without_a_cache_folder_shards_are_searched_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert len(list_images(shard(tmp_path / "0.tar")).source.names) == 3


def test_a_shard_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar")
    source = list_images(path).source
    shard(path, {"new.png": b"something else", **SAMPLES})
    with pytest.raises(ImageError, match=r"0\.tar/a\.png: .*0\.tar was changed after it was listed"):
        source.read(0)
    path.unlink()
    for use in (source.read, source.stamp):
        with pytest.raises(ImageError, match=r"0\.tar cannot be read: No such file"):
            use(0)


def test_the_check_sees_changed_content(tmp_path: Path) -> None:
    path, cache = shard(tmp_path / "0.tar"), tmp_path / "cache.jsonl"
    before = check_images(list_images(path).source, cache)
    shard(path, {**SAMPLES, "c.png": b"3RD"})
    after = check_images(list_images(path).source, cache)
    assert [name for name in before if before[name].sha256 != after[name].sha256] == ["0.tar/c.png"]


def test_an_image_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = list_images(shard(tmp_path / "0.tar")).source
    monkeypatch.setattr(byte_ranges, "MAX_BYTES", 4)
    with pytest.raises(ImageError, match=r"0\.tar/a\.png: larger than 0 MiB"):
        source.read(0)
