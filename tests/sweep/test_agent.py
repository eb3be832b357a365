"""W&B's own agent, against a server of W&B's interface on the loopback address."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from cm_lightning.checkpoint import read_checkpoint
from tests.processes import CONF, ROOT


class Server(BaseHTTPRequestHandler):
    """Answers the agent's four questions: who it is, what the sweep is, its name, and what to do next."""

    sweep, run = "", {}

    def log_message(self, *_):
        pass

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = json.loads(text) if text.startswith("{") else {}
        operation = (re.search(r"(?:query|mutation) +(\w+)", body.get("query", "")) or ["", ""])[1]
        answer = json.dumps({"data": getattr(self, operation, lambda _: {})(body.get("variables"))}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def Viewer(self, _):
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def SweepWithRuns(self, _):
        sweep = {
            "id": "s",
            "name": "s",
            "state": "RUNNING",
            "method": "grid",
            "config": self.sweep,
            "runs": {"edges": []},
        }
        return {"project": {"sweep": sweep}}

    def CreateAgent(self, _):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def Heartbeat(self, variables):
        commands = []
        if self.server.runs:
            commands = [self.server.runs.pop()]
        elif not any(json.loads(variables["runState"]).values()):
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_an_agent_s_trial_runs_on_two_ranks_and_notes_its_run(server, tmp_path):
    """The ranks are started as Lightning starts them where nothing else is said, by the command of the first."""
    note = tmp_path / "run.json"
    command = ["${env}", "${interpreter}", "-m", "cm_lightning", "fit", "--wandb=offline", "${args}"]
    values = {"config": f"{CONF}/toy.yaml", "seed_everything": 1, "trainer.devices": 2, "trainer.strategy": "ddp"}
    parameters = {name: {"value": value} for name, value in values.items()}
    Server.sweep = yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters})
    server.runs = [{"type": "run", "run_id": "trial1", "program": "", "args": parameters}]
    python = Path(sys.executable).parent
    env = {
        **os.environ, "PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40,
        "CM_LIGHTNING_RUN_FILE": str(note),
    }  # fmt: skip
    agent = [sys.executable, "-m", "wandb", "agent", "me/project/sweep"]
    done = subprocess.run(agent, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(note.read_text()) == {"directory": "runs/toy/version_0", "finished": True}
    run = tmp_path / "runs/toy/version_0"
    checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 12
    assert len(checkpoint["random_states"]) == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 1
    (logged,) = (tmp_path / "runs/toy/wandb").glob("offline-run-*-trial1/run-trial1.wandb")  # one run, by one rank
    assert b"val/loss" in logged.read_bytes()
