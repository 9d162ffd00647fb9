"""TensorRT engines: built, identified, checked, kept in a bundle and run. Never torch, never onnx."""
