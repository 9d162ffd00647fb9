"""CSV files of paths and labels are read as folders are, and each fault of them has one line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import ensure_several_classes, list_images, list_split, own_splits
from regnet_deploy.images.split_listing import list_splits

ROWS = [("cat/1.png", "cat"), ("cat/2.png", "cat"), ("dog/1.png", "dog")]


def write(folder: Path, text: str | bytes, name: str = "labels.csv", images: tuple[str, ...] = ()) -> Path:
    for image in (*(image for image, _ in ROWS), *images):
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(image.encode())
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def lines(*rows: tuple[str, ...], header: tuple[str, ...] = ("path", "label"), delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    return text.getvalue()


def test_paths_and_labels_are_those_of_the_folder(tmp_path: Path) -> None:
    listing = list_images(write(tmp_path, lines(*ROWS)))
    folder = list_images(tmp_path)
    assert listing.train == folder.train
    assert listing.source.names == folder.source.names
    assert [listing.source.read(i) for i in range(3)] == [folder.source.read(i) for i in range(3)]
    assert [listing.source.stamp(i) for i in range(3)] == [folder.source.stamp(i) for i in range(3)]
    assert listing.root == tmp_path / "labels.csv"
    assert (listing.val, listing.test, listing.left_out, listing.notes) == (None, None, {}, ())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("path", "label"), ("Image", "Class"), ("file_name", "category"), ("label", "img")])
def test_usual_headers_and_delimiters_are_known(tmp_path: Path, delimiter: str, header: tuple[str, str]) -> None:
    rows = [row[::-1] if header[0] == "label" else row for row in ROWS]
    found = list_images(write(tmp_path, lines(*rows, header=header, delimiter=delimiter)))
    assert found.train == {"cat": ("cat/1.png", "cat/2.png"), "dog": ("dog/1.png",)}


def test_columns_are_named_behind_the_path(tmp_path: Path) -> None:
    rows = [(f"{i}", "path", name, label, "training" if i else "dev") for i, (name, label) in enumerate(ROWS)]
    file = write(tmp_path, lines(*rows, header=("id", "label", "photo", "a, b", "fold")))
    found = list_splits(f"{file}#image=photo,label=a%2C b,split=fold")
    assert found.splits == {
        "train": {"cat": ("cat/2.png",), "dog": ("dog/1.png",)},
        "val": {"cat": ("cat/1.png",)},
    }
    assert list_splits(found.source.root).splits == found.splits  # a run remembers it by this


@pytest.mark.parametrize("columns", ["photo", "image=", "image=a,image=b", "place=a"])
def test_other_words_behind_the_path_are_refused(tmp_path: Path, columns: str) -> None:
    with pytest.raises(UsageError, match="does not name columns: give some of image, label and split"):
        list_images(f"{write(tmp_path, lines(*ROWS))}#{columns}")


def test_a_split_column_says_what_images_are_for(tmp_path: Path) -> None:
    splits = ("Train", "training", "train", "val", "validation", "test")
    rows = [(f"{i}.png", "cat" if i % 2 else "dog", split) for i, split in enumerate(splits)]
    rows.append(("7.png", "cat", "unlabeled"))
    text = lines(*rows, header=("path", "label", "subset"))
    file = write(tmp_path, text, images=tuple(row[0] for row in rows))
    found = list_images(file, test=True)
    assert found.train == {"cat": ("1.png",), "dog": ("0.png", "2.png")}
    assert found.val == {"cat": ("3.png",), "dog": ("4.png",)}
    assert found.test == {"cat": ("5.png",)}
    assert found.origin("val") == "val of the CSV file"
    assert found.left_out == {"7.png": "line 8: unlabeled"}
    without = list_images(file)
    assert (without.test, "5.png" in without.source.names) == (None, False)
    assert list_split(file).source.names == ("5.png",)
    assert list_split(file, "val").source.names == ("3.png", "4.png")
    assert own_splits(file) == ("train", "val", "test")


def test_without_a_split_column_there_are_no_splits(tmp_path: Path) -> None:
    file = write(tmp_path, lines(*ROWS))
    assert own_splits(file) == ()
    assert len(list_split(file).source.names) == 3
    with pytest.raises(DataError, match=r"no images of the split val that can be used: it names no splits"):
        list_split(file, "val")


def test_a_split_without_usable_images_is_not_held_out_instead(tmp_path: Path) -> None:
    rows = [*((*row, "train") for row in ROWS), ("gone.png", "cat", "val")]
    file = write(tmp_path, lines(*rows, header=("path", "label", "split")))
    with pytest.raises(DataError, match="has no images of its split val that can be used"):
        list_images(file)
    assert list(list_splits(file).splits) == ["train"]


def test_classes_that_train_lacks_are_refused(tmp_path: Path) -> None:
    rows = [*((*row, "train") for row in ROWS), ("eel.png", "eel", "val")]
    file = write(tmp_path, lines(*rows, header=("path", "label", "split")), images=("eel.png",))
    with pytest.raises(DataError, match=r"the split val of .* has 1 class that train has not: eel"):
        list_images(file)
    assert list_splits(file).splits["val"] == {"eel": ("eel.png",)}  # `check` says so as of a folder


def test_a_table_without_training_images_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, lines(*((*row, "test") for row in ROWS), header=("path", "label", "split")))
    for read in (list_images, list_splits):
        with pytest.raises(DataError, match="has no images to train on: it has test alone"):
            read(file)
    assert len(list_split(file).source.names) == 3


def test_one_class_is_refused_as_a_class(tmp_path: Path) -> None:
    file = write(tmp_path, lines(*ROWS[:2]))
    with pytest.raises(DataError, match=r"labels\.csv has one class, cat: a classifier needs two or more$"):
        ensure_several_classes(list_images(file))


def test_lines_that_cannot_be_used_are_left_out_with_their_number(tmp_path: Path) -> None:
    text = lines(*ROWS, ("cat/3.png", "cat"), ("", "dog"), ("dog/1.png", ""), ("dog/2.png", " "), ())
    assert list_images(write(tmp_path, text, images=("dog/2.png",))).left_out == {
        "cat/3.png": "line 5: no such file",
        "line 6": "no path",
        "dog/2.png": "line 8: no label",
    }


def test_an_image_may_be_there_twice_with_one_label(tmp_path: Path) -> None:
    found = list_images(write(tmp_path, lines(*ROWS, ("./cat/../cat/1.png", " cat"))))
    assert found.train["cat"] == ("cat/1.png", "cat/2.png")
    assert found.notes == ("1 line repeats an image of a line above",)


def test_paths_may_be_absolute_above_or_of_windows(tmp_path: Path) -> None:
    file = write(tmp_path / "tables", lines(("../cat/9.png", "cat"), (str(tmp_path / "tables/dog/1.png"), "dog")))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "9.png").write_bytes(b"nine")
    with file.open("a") as opened:
        opened.write(f"cat\\2.png,cat\n{tmp_path / 'cat' / '9.png'},cat\n")
    found = list_images(file)
    assert found.train["dog"] == ("dog/1.png",)
    assert found.train["cat"] == tuple(sorted(("../cat/9.png", "cat/2.png", str(tmp_path / "cat" / "9.png"))))
    assert {found.source.read(i) for i in range(4)} == {b"nine", b"dog/1.png", b"cat/2.png"}


def test_forms_of_unicode_are_one_class_and_space_is_none(tmp_path: Path) -> None:
    rows = [("cat/1.png", "caf\u00e9"), ("cat/2.png", "cafe\u0301"), ("dog/1.png", "big\n dog ")]
    assert list_images(write(tmp_path, lines(*rows))).train == {
        "caf\u00e9": ("cat/1.png", "cat/2.png"),
        "big dog": ("dog/1.png",),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv is empty: it needs a header, such as path,label"),
        ("\n \n", "labels.csv is empty"),
        ("path,label\n", "labels.csv has a header and no lines below it"),
        ("cat/1.png,cat\ndog/1.png,dog\n", "has no header, its first line is 'cat/1.png, cat': add a line above it"),
        ("path label\ncat/1.png cat\n", "has one column in its first line, 'path label': separate the columns by one"),
        ("path\ncat/1.png\n", "has one column, 'path', by each of the delimiters , ; tab and |"),
        ("path,species\ncat/1.png,cat\n", "has no label column, such as label or class: its columns are path, species"),
        ("photo,label\ncat/1.png,cat\n", "has no image column, such as path or image: its columns are photo, label"),
        ("path,label,class\ncat/1.png,cat,1\n", "has several columns that can be its label column, label, class"),
        ("path,label,label\ncat/1.png,cat,1\n", "has 2 columns called label, label: rename all but one"),
        ("path,label\ncat/1.png,cat,3\n", "line 2 has 3 cells and the header has 2: the delimiter is ,"),
        ("path,label,a\ncat/1.png,cat\n", "line 2 has 2 cells and the header has 3"),
        ('path,label\n"cat/1.png,cat\ndog/1.png,dog\n', "line 2: unexpected end of data: check the quotes there"),
        ('path,label\n"cat/1.png"x,cat\n', "check the quotes there"),
        ("path,label\ncat/1.png,cat\n./cat/1.png,dog\n", "gives cat/1.png two labels: 'cat' in line 2 and 'dog' in"),
        ("path,label,split\ncat/1.png,cat,train\ncat/1.png,cat,val\n", "gives cat/1.png two splits: 'train' in line 2"),
        ("path,label,split\ncat/1.png,cat,fold1\n", "line 2: the split 'fold1' is none of train, val and test"),
        ("path,label\nno/1.png,cat\nno/2.png,dog\n", "the 2 images of "),
        ("path,label\ncat/1.png,\n", "can be used, for example cat/1.png: line 2: no label"),
        (b"path,label\ncat/1.png,caf\xe9\n", "is not UTF-8: line 2 has the byte 0xe9; save it as CSV with UTF-8, or"),
        ("path,label\ncat/1.png,cat\n".encode("utf-16"), "is not UTF-8: it looks like UTF-16"),
        ("path,label\ncat/1.png,cat\n".encode("utf-16-le"), "is not UTF-8: it looks like UTF-16"),
        ("path,label\n" + "x" * 200_000 + ",cat\n", "line 2: field larger than field limit (131072)"),
    ],
)
def test_each_fault_has_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        list_images(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_was_named_and_is_not_there_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, lines(*ROWS, header=("path", "species")))
    with pytest.raises(DataError, match=r"has no column 'specis' \(did you mean species\?\); its columns are path"):
        list_images(f"{file}#label=specis")


def test_the_mark_of_excel_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert list_images(write(tmp_path, "\ufeff" + lines(*ROWS))).train["dog"] == ("dog/1.png",)


def test_a_file_that_is_no_table_is_refused_with_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it is a file; of files, --data takes .*\.csv"):
        list_images(write(tmp_path, lines(*ROWS), "labels.xlsx"))


def test_the_check_sees_changed_content(tmp_path: Path) -> None:
    file, cache = write(tmp_path, lines(*ROWS)), tmp_path / "cache.jsonl"
    before = check_images(list_images(file).source, cache)
    (tmp_path / "cat" / "1.png").write_bytes(b"changed")
    after = check_images(list_images(file).source, cache)
    assert [name for name in before if before[name].sha256 != after[name].sha256] == ["cat/1.png"]


NAMES = st.text(
    st.characters(exclude_characters="/\\", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
).filter(lambda name: name == name.strip() and name not in (".", ".."))


@settings(max_examples=40)
@given(
    rows=st.dictionaries(NAMES.map(lambda name: f"{name}.png"), NAMES, min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_writer_of_csv_writes_is_read(
    rows: dict[str, str], delimiter: str, quoting: int, end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("table")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([("path", "label"), *rows.items()])
    for name in rows:
        (folder / name).write_bytes(name.encode())
    found = list_images(folder / "table.csv")
    read = {name: label for label, names in found.train.items() for name in names}
    assert read.keys() == rows.keys()
    assert len(set(read.values())) <= len(set(rows.values()))
    for i, name in enumerate(found.source.names):
        assert found.source.read(i) == name.encode()


@settings(max_examples=60)
@given(text=st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_read_or_refused_in_one_line(text: str | bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("table") / "table.csv"
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(DataError) as error:  # no image exists
        list_images(file)
    assert "\n" not in str(error.value)
