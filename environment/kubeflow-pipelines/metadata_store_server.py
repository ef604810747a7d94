#!/usr/bin/python3
"""ML Metadata's gRPC server, with the options that Kubeflow Pipelines starts it with.

Google publishes the server as an image only. The wheel ml-metadata brings the same store,
in C++, and the description of the service; here the one is put behind the other.
"""

import os
import signal
import sys
import threading
import time
from concurrent import futures

import grpc
from ml_metadata.metadata_store.pywrap.metadata_store_extension import (
    metadata_store as cpp,
)
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 has no other
one_at_a_time = threading.Lock()
codes = {code.value[0]: code for code in grpc.StatusCode}


def answering(name):
    """Return a gRPC handler for the store's method of that name."""
    method = getattr(cpp, name)

    def answer(request, context):
        with one_at_a_time:
            response, message, code = method(store, request)
        if code:
            context.abort(codes[code], message.decode())
        return response

    return grpc.unary_unary_rpc_method_handler(answer)


def connect(given):
    """Return the store in the database that the options name; wait for it a minute."""
    config = metadata_store_pb2.ConnectionConfig()
    config.mysql.host = given["mysql_config_host"]
    config.mysql.port = int(given["mysql_config_port"])
    config.mysql.database = given["mysql_config_database"]
    config.mysql.user = given["mysql_config_user"]
    config.mysql.password = given["mysql_config_password"]
    options = metadata_store_pb2.MigrationOptions().SerializeToString()
    end = time.monotonic() + 60
    while True:
        try:
            return cpp.CreateMetadataStore(config.SerializeToString(), options)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
service = metadata_store_service_pb2.DESCRIPTOR.services_by_name["MetadataStoreService"]
names = [m.name for m in service.methods if hasattr(cpp, m.name)]
handlers = {name: answering(name) for name in names}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers(
    [grpc.method_handlers_generic_handler(service.full_name, handlers)]
)
server.add_insecure_port(f"0.0.0.0:{options['grpc_port']}")
with one_at_a_time:  # who asks before the database is there waits
    server.start()
    store = connect(options)
print(f"{len(handlers)} of {len(service.methods)} methods", flush=True)
server.wait_for_termination()
