#!/usr/bin/env bash
# Starts main.py with the arguments given, unless its run was started too often already.
# SkyPilot's own limit does not hold for exit codes that it is to recover from.
set -euo pipefail

readonly STARTS=${LITEVIT_RESTARTS:-100}

# The run itself records its starts, a line for each.
started=$(.venv/bin/python - "$RUN" <<'END'
import sys

from litevit_jax import paths

record = paths.path(sys.argv[1]) / "environment.jsonl"
print(record.read_text().count("\n") if record.exists() else 0)
END
) || started=0 # main.py tells what is wrong with the place, better
if ((started > STARTS)); then
  echo "error: $RUN was started $started times, LITEVIT_RESTARTS=$STARTS: look at its" \
    "logs before it costs more" >&2
  exit 1
fi
exec .venv/bin/python main.py "$@"
