"""ONNX and nothing else: the bundle contract, the runner and the hot swap. Arrays in, arrays out; knows no SQL."""
