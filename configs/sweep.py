"""A recipe run once for each point of a grid: any fields, seeds among them.

    python main.py --config=configs/sweep.py --config.recipe=mae_tiny:digits \\
        --config.grid="lr.base=1e-4,3e-4; seed=0,1,2"
    python main.py --config=configs/sweep.py --config.recipe=linear_probe \\
        --config.grid="init=runs/a,runs/b; optimizer.weight_decay=0,1e-4" \\
        --workdir=runs/probes
    python main.py --config=configs/sweep.py --config.recipe=mae_tiny:digits \\
        --config.grid="epochs=50; seed=0,1,2,3" --config.shard=1/4

`grid` lists fields of the recipe, divided by `;`, each with its values, divided by
commas and written as behind `--config.FIELD=`; commas in brackets and quotes divide
nothing. A field with one value has it in every point. Every combination is a run of its
own in points/, and the same command goes on where it was stopped. A larger grid runs
only what is new.

Start the command twice on one machine, or on machines that share the directory, and
each process takes points that no other one works on. `shard=i/n` takes every n-th
point, from the i-th on: for array jobs of a cluster (`--config.shard=$TASK/4`, tasks
from 1 to 4).

The table has a line for each combination of the other fields, with the mean of the
last results over `seed` and its range; `sweep.json` has all of them, the page
`report/index.html` the curves side by side. Results are what the recipe's evaluators
measure: choose by images held out (`data.holdout.eval=0.1`), not by the test split. It
takes as long as its runs, which follow one another in each process.
"""

import ml_collections
from ml_collections import config_dict

from litevit_jax.configs import common


def get_config(arg=None):
    """This recipe has no variants."""
    if arg:
        raise ValueError(f"variant {arg!r} unknown; write --config.recipe=RECIPE:{arg}")
    config = ml_collections.ConfigDict()
    config.name = "sweep"
    config.job = "sweep"
    config.recipe = config_dict.placeholder(str)  # RECIPE:VARIANT, or a file of yours
    config.grid = config_dict.placeholder(str)  # "FIELD=VALUE,VALUE; FIELD=VALUE"
    config.shard = config_dict.placeholder(str)  # i/n: every n-th point from the i-th
    config.log = {"report": True}  # the runs side by side, drawn at the end
    config.watchdog = dict(common.WATCHDOG)
    config.compilation_cache = common.COMPILATION_CACHE
    return config.lock()
