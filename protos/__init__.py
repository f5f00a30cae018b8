"""The contract between trainer and server: the wire protocol, the ensemble manifest, and what a member is.

The only package that both sides import. It knows neither torch nor ONNX Runtime.
"""
