#!/usr/bin/python3
"""Metaflow's metadata service: metaflow-service FOLDER PORT."""

import sys

import uvicorn
from fastapi import HTTPException
from metaflow_local_service import server, store

app = server.create_app(sys.argv[1])
TASK = "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}"


# The package lists artifacts, but lacks the two addresses of a single one.
@app.get(TASK + "/artifacts/{name}")
@app.get(TASK + "/attempt/{attempt}/artifacts/{name}")
def artifact(flow: str, run: str, step: str, task: str, name: str, attempt: int = None):
    """Return an artifact of a task, of its latest attempt if none is said."""
    found = store.get_artifacts(flow, run, step, task, attempt)
    if not (named := [a for a in found if a["name"] == name]):
        raise HTTPException(404, "no such artifact")
    return max(named, key=lambda a: int(a["attempt_id"]))


def keep_id(create, number, key):
    """Let a creator keep the id that the client has chosen, as Argo's pods do."""
    made, own = getattr(store, create), getattr(store, number)

    def creator(*words):
        chosen = words[-1].get(key)
        setattr(store, number, own if chosen is None else lambda *_: str(chosen))
        return made(*words)

    setattr(store, create, creator)


keep_id("create_run", "new_run_id", "run_number")
keep_id("create_task", "_next_task_id", "task_id")
# A connection that the server ends while it is idle would end `kubectl port-forward`.
uvicorn.run(
    app,
    host="0.0.0.0",
    port=int(sys.argv[2]),
    log_level="warning",
    timeout_keep_alive=3600,
)
