"""`python -m toolkit VERB`."""

import sys

from toolkit.cli.main import main

sys.exit(main(sys.argv[1:]))
