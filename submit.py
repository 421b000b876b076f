"""Submit a training run.

python submit.py --nodes 8                        # configs/default.yaml
python submit.py configs/runs/7b-8nodes.yaml --nodes 8 optim.peak_lr=2e-4
python submit.py --nodes 8 --dry-run              # plan, script and run directory; submits nothing
"""

import sys

from toolkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
