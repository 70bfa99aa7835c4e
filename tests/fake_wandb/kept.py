"""What a wandb server holds, and how it answers the GraphQL that wandb 0.31 asks it for. An operation it does not know
is refused, and `refused` has it, so that a test can say that there was none."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import yaml

ENTITY = "tester"
OPERATION = re.compile(r"^\s*(?:query|mutation)\s+(\w+)", re.MULTILINE)


@dataclass
class KeptRun:
    """What is kept of a run. history: its rows by their lines. files: uploaded, by name."""

    project: str
    name: str
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    sweep: str = ""
    display: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history without wandb's own clock, and `step` as in metrics.csv."""
        return [
            {name: value for name, value in row.items() if not name.startswith("_")} | {"step": row["_step"]}
            for row in self.history
        ]


class Kept:
    """runs, sweeps, artifacts: by id. told: what was said of runs, as it came. to_stop: trials that agents are told to
    stop. address: where files are to be put."""

    address = ""

    def __init__(self) -> None:
        self.runs: dict[str, KeptRun] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.agents: dict[str, str] = {}
        self.refused: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.to_stop: set[str] = set()
        self.lock = threading.RLock()

    # Files

    def put(self, path: str, content: bytes) -> None:
        """A file at the address that was handed out for it."""
        kind, owner, *name = path.removeprefix("/storage/").split("/", 2)
        with self.lock:
            if kind == "run":
                self.runs[owner].files[name[0]] = content
            elif kind == "artifact":
                self.artifacts[owner]["files"][name[0]] = content
            elif kind == "manifest":
                self.artifacts[owner]["manifest"] = json.loads(content)
            else:
                self.refused.append(f"PUT {path}")

    def stream(self, run_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request of file_stream: lines at an offset take the place of what was there."""
        with self.lock:
            run = self.runs[run_id]
            for name, chunk in (body.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    lines, start = [json.loads(line) for line in chunk["content"]], int(chunk["offset"])
                    run.history[start : start + len(lines)] = lines
                elif name == "wandb-summary.json":
                    run.summary = json.loads(chunk["content"][-1])
            run.preempting = run.preempting or bool(body.get("preempting"))
            if body.get("complete"):
                run.exit_code = int(body.get("exitcode", 0))
            return {"exitcode": None, "limits": {}}

    # GraphQL

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data of an answer; LookupError for an operation that is not known."""
        found = OPERATION.search(query)
        name = found[1] if found else query[:60]
        method = getattr(self, "on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(), None)
        with self.lock:
            if method is None:
                self.refused.append(query)
                raise LookupError(f"this server knows no {name}")
            return dict(method(variables))

    def _project(self, name: str | None) -> dict[str, Any]:
        return {"id": f"project-{name}", "name": name, "entity": {"id": "entity", "name": ENTITY}}

    def on_viewer(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    on_get_viewer = on_viewer

    def on_get_default_entity(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "viewer", "entity": ENTITY}}

    def on_server_features_query(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_organization_core_weave_organization_i_d(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def on_upsert_bucket(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name, project = variables["name"], variables["project"]
        new = name not in self.runs
        run = self.runs.setdefault(name, KeptRun(project, name))
        run.group = variables.get("groupName") or run.group
        run.tags = variables["tags"] if variables.get("tags") is not None else run.tags
        run.sweep = variables.get("sweep") or run.sweep
        run.display = variables.get("displayName") or run.display
        if variables.get("config"):
            run.config |= json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary |= json.loads(variables["summaryMetrics"])
        self.told.append({key: value for key, value in variables.items() if value is not None})
        bucket = {"id": f"bucket-{name}", "name": name, "displayName": run.display, "description": "", "config": "{}"}
        bucket |= {"sweepName": run.sweep or None, "project": self._project(project)}
        bucket |= {"historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_run_resume_status(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": self._project(variables["project"]) | {"bucket": None}}
        bucket = {
            "id": f"bucket-{run.name}",
            "name": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": run.display,
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.tags,
            "notes": "",
            "wandbConfig": json.dumps({"t": {"value": 1}}),
        }
        return {"model": self._project(run.project) | {"bucket": bucket}}

    def on_create_run_files(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.address}/storage/run/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": f"bucket-{run}", "uploadHeaders": [], "files": files}}

    # Sweeps

    def on_upsert_sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        config = yaml.safe_load(variables["config"])
        keys = list(config["parameters"])
        grid = product(*(config["parameters"][key]["values"] for key in keys))
        left = [dict(zip(keys, values, strict=True)) for values in grid]
        self.sweeps[name] = {"config": config, "left": left, "given": 0}
        sweep = {"name": name, "project": self._project(variables["projectName"])}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def on_sweep_with_runs(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        config = yaml.safe_dump(self.sweeps[variables["sweep"]]["config"])
        sweep = {"id": variables["sweep"], "name": variables["sweep"], "state": "RUNNING", "config": config}
        return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}

    def on_create_agent(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = f"agent-{len(self.agents)}"
        self.agents[name] = variables["sweep"]
        return {"createAgent": {"agent": {"id": name}}}

    def on_heartbeat(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A trial where the agent has none; to be stopped where the sweep says so; the end where nothing is left."""
        sweep = self.sweeps[self.agents[variables["id"]]]
        working = json.loads(variables["runState"] or "{}")
        commands: list[dict[str, Any]] = []
        if working:
            commands = [{"type": "stop", "run_id": run} for run in working if run in self.to_stop]
        elif sweep["left"]:
            trial = sweep["left"].pop(0)
            arguments = {key: {"value": value} for key, value in trial.items()}
            run = f"trial{sweep['given']}"
            sweep["given"] += 1
            commands = [{"type": "run", "run_id": run, "args": arguments, "program": sweep["config"]["program"]}]
        else:
            commands = [{"type": "exit"}]
        agent = {"id": variables["id"]}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    # Artifacts

    def on_artifact_type(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """No artifact has a type before the first of its name."""
        return {"project": {"artifact": None}}

    def on_create_artifact(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        given = variables["input"]
        number = f"artifact-{len(self.artifacts)}"
        self.artifacts[number] = {
            "name": given["artifactCollectionName"],
            "type": given["artifactTypeName"],
            "run": given.get("runName", ""),
            "files": {},
            "committed": False,
        }
        artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def on_create_artifact_files(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        nodes = []
        for one in variables["input"]["artifactFiles"]:
            number, name = one["artifactID"], one["name"]
            address = f"{self.address}/storage/artifact/{number}/{name}"
            node = {"storagePath": f"artifact/{number}/{name}", "uploadUrl": address, "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": number}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def on_create_artifact_manifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        number = variables["artifactID"]
        file = {"id": f"file-{number}", "uploadUrl": f"{self.address}/storage/manifest/{number}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": file}}}

    def on_update_artifact_manifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        number = variables["artifactManifestID"].removeprefix("manifest-")
        file = {"id": f"file-{number}", "uploadUrl": f"{self.address}/storage/manifest/{number}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": f"manifest-{number}", "file": file}}}

    def on_commit_artifact(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        self.artifacts[variables["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
