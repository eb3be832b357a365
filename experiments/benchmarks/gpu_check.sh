#!/usr/bin/env bash
# Try this suite on a GPU, in about ten minutes: tables go to the terminal and to gpu_check.txt, to be sent back.
# Run it from the root of the repository.
set -euo pipefail
{
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    python -c "import lightning, torch; print('torch', torch.__version__, 'lightning', lightning.__version__)"
    for precision in float32 bfloat16; do
        echo "## steps, $precision"
        python experiments/benchmarks/steps.py --device cuda --precision "$precision" --channels 128 --side 64 --images 64
    done
    echo "## the Trainer's overhead"
    python experiments/benchmarks/overhead.py
    echo "## Exercise 1"
    python -m cm_lightning fit --config experiments/mnist/ct.yaml --trainer.logger.init_args.save_dir "$(mktemp -d)"
} 2>&1 | tee gpu_check.txt
