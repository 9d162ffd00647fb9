"""A trained network as ONNX and TensorRT, with proof that what was exported is what was trained."""
