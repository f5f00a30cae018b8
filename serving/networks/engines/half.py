"""A model in half precision: what its nodes compute is fp16, what goes in and comes out stays as it was."""

import onnx


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """By ONNX Runtime's own converter, which knows the operators that must stay in fp32. The argument is spent."""
    # Not above: it takes a while, and only a GPU asks for it.
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return converted
