"""Write a Go file of Kubeflow Pipelines from the descriptor in a Python wheel.

generate.py PROTOC_GEN_GO MESSAGES_PB2.PY FILE.PB.GO

Upstream generates the Go file and the wheel from the same .proto file. The Go file of this
release is in no published module; the wheel is on PyPI.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from google.protobuf.compiler import plugin_pb2

generator, source, target = sys.argv[1:]
place = importlib.util.spec_from_file_location("messages", source)
messages = importlib.util.module_from_spec(place)
place.loader.exec_module(messages)


def with_imports(descriptor):
    """Yield a .proto file's descriptor after those that it imports."""
    for needed in descriptor.dependencies:
        yield from with_imports(needed)
    yield descriptor


wanted = messages.DESCRIPTOR
request = plugin_pb2.CodeGeneratorRequest(file_to_generate=[wanted.name])
for file in {f.name: f for f in with_imports(wanted)}.values():
    file.CopyToProto(request.proto_file.add())
done = subprocess.run(
    [generator], input=request.SerializeToString(), stdout=subprocess.PIPE, check=True
)
answer = plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)
if answer.error:
    sys.exit(answer.error)
Path(target).write_text(answer.file[0].content, encoding="utf-8")
