"""Named configurations and thin command lines; no numerics."""

import sys

# So it is while `python -m experiments.NAME` looks for the module, and never later.
if sys.argv[:1] == ["-m"]:
    from experiments import start

    start.prepare()
