"""What a model tells of itself: the protocol's metadata, and the same as Triton's configuration."""

import json

from protos import open_inference_grpc_pb2 as oip
from serving.batcher import DEFAULT_PRIORITY, LAST_PRIORITY
from serving.ensemble import Ensemble
from serving.pictures import takes_pictures
from serving.policy import Policy

PLATFORM = "thalweg_onnx_ensemble"
EXTENSIONS = ("classification", "model_configuration", "parameters", "schedule_policy", "statistics")


def outputs(ensemble: Ensemble) -> list[tuple[str, str, list[int]]]:
    """Name, datatype and shape of each, in the order of the metadata; -1 is an axis that varies, the first the rows."""
    classes = len(ensemble.class_labels)
    return [(name, output.datatype, output.shape(classes)) for name, output in ensemble.disclosure.outputs.items()]


def properties(ensemble: Ensemble, max_batch_rows: int, forced_policy: Policy | None) -> dict[str, str]:
    return {
        "class_labels": json.dumps(ensemble.class_labels),
        "members": str(len(ensemble.member_ids)),
        "max_batch_rows": str(max_batch_rows),
        "policy": forced_policy or Policy.MEAN,
        "pictures": "PNG,JPEG" if takes_pictures(ensemble.input_datatype, ensemble.input_shape) else "",
    }


def metadata(
    ensemble: Ensemble, versions: list[str], max_batch_rows: int, forced_policy: Policy | None
) -> oip.ModelMetadataResponse:
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=ensemble.name,
        versions=versions,
        platform=PLATFORM,
        inputs=[tensor(name=ensemble.input_name, datatype=ensemble.input_datatype, shape=[-1, *ensemble.input_shape])],
        outputs=[tensor(name=name, datatype=datatype, shape=shape) for name, datatype, shape in outputs(ensemble)],
        properties=properties(ensemble, max_batch_rows, forced_policy),
    )


def _triton_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def configuration(ensemble: Ensemble, max_batch_rows: int, forced_policy: Policy | None) -> oip.ModelConfig:
    pictures = takes_pictures(ensemble.input_datatype, ensemble.input_shape)
    return oip.ModelConfig(
        name=ensemble.name,
        platform=PLATFORM,
        backend="thalweg",
        version_policy=oip.ModelVersionPolicy(all=oip.ModelVersionPolicy.All()),
        max_batch_size=max_batch_rows,
        input=[
            oip.ModelInput(
                name=ensemble.input_name,
                data_type=f"TYPE_{ensemble.input_datatype}",
                format=oip.ModelInput.FORMAT_NCHW if pictures else oip.ModelInput.FORMAT_NONE,
                dims=ensemble.input_shape,
            )
        ],
        output=[
            oip.ModelOutput(name=name, data_type=_triton_type(datatype), dims=shape[1:])
            for name, datatype, shape in outputs(ensemble)
        ],
        instance_group=[oip.ModelInstanceGroup(name=ensemble.name, count=1, kind=oip.ModelInstanceGroup.KIND_MODEL)],
        dynamic_batching=oip.ModelDynamicBatching(
            priority_levels=LAST_PRIORITY, default_priority_level=DEFAULT_PRIORITY
        ),
        parameters={
            name: oip.ModelParameter(string_value=value)
            for name, value in properties(ensemble, max_batch_rows, forced_policy).items()
        },
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
