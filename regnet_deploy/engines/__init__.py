"""TensorRT engines: build, identify, inspect, store and run. Imports neither torch nor onnx."""
