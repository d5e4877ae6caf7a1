"""Weights from one format to another: imports and exports, without training.

    python main.py --config=configs/convert.py --config.source=RUN_OR_FILE \\
        --config.target=OUT.safetensors

`source` is a run directory, a step inside it (RUN_DIR/checkpoints/STEP), or a file of
weights that the package reads (docs/weights.md lists them). The format of the target
follows from its ending unless `format` is given:

    .safetensors  timm (default), mae (with the decoder), vitdet, mmseg, detectron2
    .pth          detectron2: a detector, as torch.save writes it
    .onnx         onnx, opset 17, any batch size
    .stablehlo    stablehlo, any batch size, on CPU, GPU and TPU
    DIR/          a folder for timm and hubs: config.json, model.safetensors, README.md

A timm or mae file is what --config.init of other recipes accepts. Before the target
appears, it is read back and its outputs on a fixed input are compared with those of
the source; a table of sizes and CPU times follows. About half a minute for ViT-Tiny
on 2 CPU cores, most of it for the times.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg=None):
    """This recipe has no variants."""
    if arg:
        raise ValueError(f"variant {arg!r} unknown; this config has none")
    config = ml_collections.ConfigDict()
    config.name = "convert"
    config.job = "convert"
    config.source = config_dict.placeholder(str)  # run, step in it, or file
    config.target = config_dict.placeholder(str)  # file to be written, or DIR/
    config.format = config_dict.placeholder(str)  # None: from the target's ending
    config.part = "all"  # 'encoder' leaves a classifier's last layer out
    config.num_heads = config_dict.placeholder(int)  # where a file does not tell
    config.grid = config_dict.placeholder(str)  # rows x columns of patches, as 14x10
    config.pool = config_dict.placeholder(str)  # avg or cls, where it does not tell
    config.act = config_dict.placeholder(str)  # gelu, or it is refused
    config.norm = config_dict.placeholder(str)  # layernorm, or it is refused
    config.branch = config_dict.placeholder(str)  # of MoCo: or 'momentum_encoder'
    config.licence = config_dict.placeholder(str)  # of the weights, as apache-2.0
    config.ema = False  # a run's average of its parameters, not the last ones
    config.allow_half = False  # takes float16 and bfloat16 files
    config.image_size = config_dict.placeholder(int)  # other: positions are resized
    config.preprocess = False  # of .onnx: it takes images of bytes, of any size
    config.half = False  # of .onnx: weights of 16 bits, in half of the space
    config.tolerance = 2e-5  # largest difference of outputs, relative above 1
    # Times of the model as it is, and with so many heads instead; () measures nothing.
    config.latency = {"heads": (12, 3), "repeats": 30}
    return config.lock()
