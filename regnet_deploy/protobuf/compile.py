"""Compiles the .proto files into ``messages.binpb``: ``python -m regnet_deploy.protobuf.compile``.

Descriptors and not the Python that protoc would write: that is bound to the version of the library it was made for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from regnet_deploy.errors import UsageError, require

FOLDER = Path(__file__).parent
COMPILED = FOLDER / "messages.binpb"


def compile_messages() -> bytes:
    """Return the FileDescriptorSet of the .proto files beside this module, without the comments.

    Raises:
        MissingExtra: grpcio-tools, one of the development tools, is not installed.
        UsageError: protoc refuses a file; what it says stands on stderr.
    """
    protoc = require("grpc_tools.protoc", "grpc")
    names = sorted(path.name for path in FOLDER.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, COMPILED.name)
        options = [f"--proto_path={FOLDER}", f"--descriptor_set_out={compiled}", "--include_imports"]  # imported first
        if protoc.main(["protoc", *options, *names]) != 0:
            raise UsageError(f"protoc does not take {', '.join(names)}")
        return compiled.read_bytes()


if __name__ == "__main__":
    COMPILED.write_bytes(compile_messages())
