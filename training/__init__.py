"""Offline jobs: label a workload, train a model, export it as one ONNX file."""
