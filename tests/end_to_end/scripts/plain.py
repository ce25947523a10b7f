"""Run scripts one after the other without probes: plain.py FOLDER SCRIPT...; each prints into FOLDER/<its name>/stdout."""

import contextlib
import os
import runpy
import sys

folder, *scripts = sys.argv[1:]
for script in scripts:
    out = os.path.join(folder, os.path.basename(script).removesuffix(".py"))
    os.makedirs(out)
    sys.argv = [script, out]
    with open(os.path.join(out, "stdout"), "w") as file, contextlib.redirect_stdout(file):
        runpy.run_path(script, run_name="__main__")
