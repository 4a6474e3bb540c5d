"""Every family through llama.cpp's own conversion script and back through `nha convert`: the same tensors to the bit, and a configuration
that says the same."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
from safetensors.numpy import load_file

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3moe")


def said(config):
    """A configuration with both spellings made one."""
    c = dict(config)
    rope = dict(c.pop("rope_parameters", None) or {})
    c["rope_theta"] = rope.pop("rope_theta", c.get("rope_theta"))
    rope.update(c.pop("rope_scaling", None) or {})
    c["rope"] = rope if rope.get("rope_type", "default") != "default" else None
    c["experts"] = c.pop("num_experts", None) or c.pop("num_local_experts", None)
    c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
    return {k: v for k, v in c.items() if v is not None}


def run(check, nha, llama, golden, work):
    sys.path.insert(0, llama)
    import conversion
    from conversion.base import ModelBase

    for family in FAMILIES:
        source = Path(golden) / f"{family}-tiny"
        with tempfile.TemporaryDirectory(dir=work) as root:
            file, directory = Path(root) / "model.gguf", os.path.join(root, "out")
            architecture = ModelBase.load_hparams(source, False)["architectures"][0]
            converter = conversion.get_model_class(architecture)
            converter.set_vocab = lambda self: None  # the tiny models have no tokenizer
            converter(source, gguf.LlamaFileType.ALL_F32, file).write()
            subprocess.run([nha, "convert", str(file), directory, "--dtype", "f32"], check=True, stdout=subprocess.DEVNULL)
            want, got = load_file(source / "model.safetensors"), load_file(os.path.join(directory, "model.safetensors"))
            same = want.keys() == got.keys() and all(want[k].shape == got[k].shape and want[k].tobytes() == got[k].tobytes() for k in want)
            check(f"{family}: tensors", same, f"{len(want)} as before llama.cpp's conversion")
            before, after = said(json.loads((source / "config.json").read_text())), said(json.loads(Path(directory, "config.json").read_text()))
            different = {k: (before[k], v) for k, v in after.items() if k in before and before[k] != v}
            check(f"{family}: configuration", not different and len(before.keys() & after.keys()) >= 14, str(different or ""))
