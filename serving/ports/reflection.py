"""Server reflection: grpcurl and the like learn our messages from the server itself."""

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from protos import open_inference_grpc_pb2

FILES = (open_inference_grpc_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)


def enable(server: grpc.aio.Server) -> None:
    # Ours are in a pool of their own (protos/generate.py), the others in protobuf's; reflection wants one for all.
    pool = DescriptorPool()
    for file in FILES:
        pool.AddSerializedFile(file.serialized_pb)
    names = [service.full_name for file in FILES for service in file.services_by_name.values()]
    reflection.enable_server_reflection(names, server, pool)
