"""A run of the plug-in beside this file, traced and compiled in a second."""

from litevit_jax.configs import mae_tiny


def get_config(arg=None):
    """No `arg` changes anything."""
    del arg
    config = mae_tiny.get_config("smoke")
    with config.unlocked():
        config.update(name="smallest", steps=20)
        encoder = config.objective.encoder.to_dict()
        config.objective = {"name": "linear", "encoder": encoder | {"width": 8}}
        config.evals = {}
    config.data.cache = "off"  # a step from bytes takes longer to compile
    config.checkpoint.every_steps = 2
    config.log.update(writers=("jsonl",), health=False, report=False)
    return config.lock()
