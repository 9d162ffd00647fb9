import shutil
import subprocess
from pathlib import Path

import pytest

from regnet_deploy.runtimes.shared_libraries import load_shared_library, missing_libraries, needed_libraries

SUFFIXES = ("so", "so.*")


def libraries_of_onnxruntime() -> list[Path]:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    return sorted({path for suffix in SUFFIXES for path in folder.glob(f"*.{suffix}")})


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_what_a_library_needs_is_what_readelf_lists():
    for path in libraries_of_onnxruntime():
        listed = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
        wanted = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
        assert needed_libraries(path) == wanted


def test_onnxruntime_needs_the_c_library_and_it_is_there():
    needed = [name for path in libraries_of_onnxruntime() for name in needed_libraries(path)]
    assert "libc.so.6" in needed
    assert missing_libraries(["libc.so.6"]) == []


def test_those_that_are_not_there_are_named_in_order():
    assert missing_libraries(["libno_such_b.so.1", "libc.so.6", "libno_such_a.so.2"]) == [
        "libno_such_b.so.1",
        "libno_such_a.so.2",
    ]
    assert load_shared_library("libno_such_a.so.2") is None


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x01\x01" + b"\0" * 60])
def test_a_file_that_is_no_library_of_this_machine_needs_nothing(tmp_path: Path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert needed_libraries(path) == []
