"""Pre-trains, evaluates, analyses and converts small vision transformers.

    python main.py --config=configs/mae_tiny.py
    python main.py --config=configs/mae_tiny.py:digits --config.seed=1
    python main.py --config=configs/mae_tiny.py:data=folder,path=DIR --workdir=DIR
    python main.py --config=configs/linear_probe.py --config.init=RUN_DIR
    python main.py --config=configs/evaluate.py --config.init=RUN_OR_FILE
    python main.py --config=configs/transfer.py:pets --config.init=RUN_OR_FILE
    python main.py --config=configs/analysis.py --config.models=NAME=RUN,NAME=FILE
    python main.py --config=configs/layer_study.py --config.init=RUN_OR_FILE
    python main.py --config=configs/convert.py --config.source=RUN_OR_FILE \\
        --config.target=OUT.safetensors
    python main.py check DIR
    python main.py stats DIR
    python main.py runs DIR
    python main.py recipes
    python main.py fields RECIPE
    python main.py completion bash

--config names a recipe, from any directory and without its folder if you like
(--config=mae_tiny:digits), with a variant behind a colon; --config.a.b=value overrides
one of its fields. Running the same command again resumes from the workdir.
--plan=v5e-256 compiles the run for that slice and reports what it would need there;
nothing is run, and no TPU is needed.

On several hosts the same command is started on each. On Cloud TPU, GKE, SLURM and
Open MPI they find one another; elsewhere --coordinator=HOST:PORT --num_processes=N
--process_id=I say who they are (docs/distributed.md).
"""

from litevit_jax import preemption


def main() -> None:
    """Runs the command of the command line; the console command `litevit` is this."""
    preemption.program(_run)  # from the very start: the imports in _run are slow


def _run() -> None:
    import sys

    from absl import app

    from litevit_jax import cli

    cli.define()
    app.run(lambda _: sys.exit(cli.run(sys.argv)), flags_parser=cli.parse)


if __name__ == "__main__":
    main()
