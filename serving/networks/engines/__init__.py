"""What runs a network: ONNX Runtime on a CPU or a GPU, OpenVINO on a CPU. One interface, `engine.py`."""
