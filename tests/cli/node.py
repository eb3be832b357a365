"""One of two nodes that torchrun starts, with a worker that is a fork; started by test_ddp.py as
``python node.py PORT ARGUMENT...``.

Torchrun's own program starts its workers as commands, each of which would import the suite anew.
"""

import sys
from unittest.mock import patch

from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cm_lightning.cli import main

if __name__ == "__main__":
    port, *arguments = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=2, max_nodes=2, nproc_per_node=1, max_restarts=0, start_method="fork", run_id="two nodes",
        rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs={"is_host": "0"},
    )  # fmt: skip
    # its log names the function that writes, and looks for it in all modules, of which there are thousands here
    with patch.object(dynamic_rendezvous, "get_method_name", return_value=""):
        elastic_launch(config, main)(arguments)
