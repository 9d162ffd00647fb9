"""Shows runs in TensorBoard, MLflow and Weights & Biases while they train, by one interface."""
