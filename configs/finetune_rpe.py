"""Fine-tuning with relative position bias, 1000 epochs (recipes 1.5 and 5.3).

    python main.py --config=configs/finetune_rpe.py --config.init=RUN_DIR
    python main.py --config=configs/finetune_rpe.py:imagenet2012 --config.init=FILE
    python main.py --config=configs/finetune_rpe.py:data=folder,path=DIR \\
        --config.init=RUN_DIR
    python main.py --config=configs/finetune_rpe.py:digits --config.init=RUN_DIR
    python main.py --config=configs/finetune_rpe.py:smoke

As configs/finetune.py, whose docstring says what `init` may be; besides, each block
adds to its attention logits a bias by head and by the offset of the two patches,
learned from 0. The absolute position embedding stays. What starts fresh, and what of
the checkpoint stays unused, is listed in `init_load` and `init_skip`; anything else
that does not fit is an error.

`style=fused` (default): everything that a pre-trained block knows is loaded.
`style=v2023`, as the authors' code of 2023 has it: queries and values have biases of
their own, keys none, and the pre-trained biases of all three are lost; both branches of
a block begin at a tenth. `style=qv_bias`, the default of their revision of 2025: the
same without that tenth.

ImageNet: batch 1024, 1000 epochs = 1,251,000 steps; not timed by us on accelerators.
The authors' README has 79.0 % ImageNet top-1 for MAE-Tiny, and does not say of which
style; we did not train it and claim no such number. Digits: about a minute on 2 CPU
cores; 96.7 % of the test digits after mae_tiny:digits, in one run.
"""

from litevit_jax.configs import common

TABLE = "relative_position_bias_table"
# Style -> parameters of a block that start fresh, as they are in no checkpoint.
FRESH = {
    "fused": (TABLE,),
    "qv_bias": (TABLE, "q_bias", "v_bias"),
    "v2023": (TABLE, "q_bias", "v_bias", "gamma_1", "gamma_2"),
}


def get_config(arg=None):
    """`arg`: style=fused|qv_bias|v2023; imagenet2012, digits, smoke,
    data=folder,path=DIR."""
    given = common.parse_arg(arg, values=("style",))
    style = given["style"] or "fused"
    if style not in FRESH:
        raise ValueError(common.unknown("style", style, list(FRESH)))
    config = common.base("finetune_rpe" + (f"-{style}" if given["style"] else ""))
    common.use_finetuning(config)
    config.epochs = 1000
    config.objective.head = "linear_small"
    config.objective.encoder.update(
        pos_embed="learned_sincos", init_style="rpe", rpe_style=style
    )
    config.init_required = True  # or random, to begin anew
    config.init_load = (f"encoder/(?!.*/({'|'.join(FRESH[style])})$).*",)
    config.init_skip = ("(?!encoder/).*", "encoder/norm/.*")
    if style != "fused":  # its third for the keys has no place here
        config.init_skip = (*config.init_skip, r"encoder/blocks_\d+/attn/qkv/bias")
    common.use_finetuning_data(config, given)
    if given["smoke"]:
        config.init = "random"
        config.objective.encoder.update(common.small_model(config))
        common.use_smoke(config)
    return config.lock()
