"""Classes of the messages, from the compiled descriptors, whatever release of protobuf is installed.

They live in a pool of their own: another library in the process that brings the same protocol (tritonclient does) keeps
its classes, and the two do not collide.
"""

from __future__ import annotations

import functools
from typing import Any

from regnet_deploy.errors import DataError, UsageError, did_you_mean, require
from regnet_deploy.protobuf.compile import COMPILED

#: Extra that brings protobuf.
EXTRA = "grpc"


@functools.cache
def _pool() -> Any:
    descriptors = require("google.protobuf.descriptor_pb2", EXTRA)
    pool = require("google.protobuf.descriptor_pool", EXTRA).DescriptorPool()
    for file in descriptors.FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def message_class(name: str) -> Any:
    """Return the class of a message by its full name: ``inference.ModelConfig``.

    Raises:
        MissingExtra: protobuf is not installed.
        UsageError: there is no such message.
    """
    factory = require("google.protobuf.message_factory", EXTRA)
    try:
        descriptor = _pool().FindMessageTypeByName(name)
    except KeyError:
        raise UsageError(f"there is no message {name}{did_you_mean(name, message_names())}") from None
    return factory.GetMessageClass(descriptor)


def message_names() -> list[str]:
    """Return the full names of the messages of all files, those inside others left out."""
    descriptors = require("google.protobuf.descriptor_pb2", EXTRA)
    files = descriptors.FileDescriptorSet.FromString(COMPILED.read_bytes()).file
    return [f"{file.package}.{message.name}" for file in files for message in file.message_type]


def message(name: str, values: dict[str, Any] | None = None, *, ignore_unknown: bool = False) -> Any:
    """Return a new message, filled from ``values`` as protobuf's JSON has them (enumerations by name).

    Args:
        name: of the message.
        values: of its fields.
        ignore_unknown: pass over what the message has no field for.

    Raises:
        DataError: ``values`` hold a field that the message lacks, or a value of another type.
        MissingExtra: protobuf is not installed.
        UsageError: there is no such message.
    """
    made = message_class(name)()
    if values:
        json_format = require("google.protobuf.json_format", EXTRA)
        try:
            json_format.ParseDict(values, made, ignore_unknown_fields=ignore_unknown)
        except json_format.ParseError as error:
            raise DataError(_one_line(name, error)) from None
    return made


def to_dict(filled: Any) -> dict[str, Any]:
    """Return the message as protobuf's JSON, with the field names of its .proto file and without what is not set."""
    json_format = require("google.protobuf.json_format", EXTRA)
    converted: dict[str, Any] = json_format.MessageToDict(filled, preserving_proto_field_name=True)
    return converted


def to_text(filled: Any) -> str:
    """Return the message in protobuf's text format, as ``config.pbtxt`` has it."""
    text: str = require("google.protobuf.text_format", EXTRA).MessageToString(filled, as_utf8=True)
    return text


def parse_text(name: str, text: str) -> Any:
    """Return the message that ``text`` describes in protobuf's text format.

    Raises:
        DataError: the text has a field that the message lacks, or a value of another type; says where.
        MissingExtra: protobuf is not installed.
        UsageError: there is no such message.
    """
    text_format = require("google.protobuf.text_format", EXTRA)
    try:
        return text_format.Parse(text, message_class(name)())
    except text_format.ParseError as error:
        raise DataError(_one_line(name, error)) from None


def _one_line(name: str, error: Exception) -> str:
    return f"{name}: " + " ".join(str(error).split())
