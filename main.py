"""Pre-trains, evaluates, transfers and converts small vision transformers.

    python main.py --config=configs/mae_tiny.py
    python main.py --config=configs/mae_tiny.py:digits --config.seed=1
    python main.py --config=configs/mae_tiny.py:data=folder,path=DIR --workdir=DIR
    python main.py --config=configs/linear_probe.py --config.init=RUN_DIR
    python main.py --config=configs/evaluate.py --config.init=RUN_OR_FILE
    python main.py --config=configs/transfer.py:pets --config.init=RUN_OR_FILE
    python main.py --config=configs/convert.py --config.source=RUN_OR_FILE \\
        --config.target=OUT.safetensors

--config names a recipe, with a variant behind a colon; --config.a.b=value overrides
one of its fields. Running the same command again resumes from the workdir.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from litevit_jax import cli

config_flags.DEFINE_config_file("config", None, "Recipe: configs/NAME.py[:variant].")
flags.DEFINE_string(
    "workdir", None, "Directory of the run; default runs/<config name>."
)

if __name__ == "__main__":
    app.run(lambda _: sys.exit(cli.run(sys.argv)), flags_parser=cli.parse)
