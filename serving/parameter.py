"""A request parameter from a value: the protocol has four forms."""

from protos import open_inference_grpc_pb2 as oip


def parameter(value: bool | int | float | str) -> oip.InferParameter:
    """Raises TypeError for a value that the protocol has no form for."""
    match value:
        case bool():
            return oip.InferParameter(bool_param=value)
        case int():
            return oip.InferParameter(int64_param=value)
        case float():
            return oip.InferParameter(double_param=value)
        case str():
            return oip.InferParameter(string_param=value)
    raise TypeError(f"a parameter is {type(value).__name__}; expected bool, int, float or str")
