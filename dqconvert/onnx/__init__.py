"""ONNX: a prepared module's evaluation graph, written operation by operation."""
