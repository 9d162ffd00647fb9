"""The compiled descriptors that lie beside the .proto files."""

from google.protobuf import descriptor_pb2

from regnet_deploy.protobuf.compile import COMPILED, compile_messages


def test_the_compiled_messages_are_those_of_the_files():
    fresh, stored = (
        descriptor_pb2.FileDescriptorSet.FromString(data) for data in (compile_messages(), COMPILED.read_bytes())
    )
    assert stored == fresh, "run: python -m regnet_deploy.protobuf.compile"
