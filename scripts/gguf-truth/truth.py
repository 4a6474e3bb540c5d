"""See run."""

import argparse
import os
import sys

import numpy as np

import blocks


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nha", required=True, help="the binary")
    p.add_argument("--logits", help="the binary of scripts/gguf-truth/logits")
    p.add_argument("--work", required=True, help="a folder for temporary files")
    p.add_argument("--ggml", help="libggml-base of a llama.cpp build")
    p.add_argument("--llama", help="llama.cpp's source")
    p.add_argument("--golden", help="tiny models of every family")
    p.add_argument("--fixture", help="write tensor/testdata/quant.safetensors and end")
    p.add_argument("--text", help="text to measure on")
    p.add_argument("--tokens", type=int, default=20000)
    p.add_argument("--part", action="append", choices=["blocks", "families", "logits", "kl"], help="some of the full comparison (default: all)")
    p.add_argument("--out", help="the table, in Markdown")
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of every program")
    p.add_argument("--types", help="some of the files: Q4_0,Q8_0")
    p.add_argument("files", nargs="*", help="GGUF files of SmolLM2-135M-Instruct")
    a = p.parse_args()
    if a.fixture:
        blocks.fixture(a.fixture, np.random.default_rng(12))
        return 0
    if a.types:
        a.files = [f for f in a.files if f.split(".")[-2] in a.types.split(",")]
    check = blocks.Check()
    library = blocks.CLibrary(a.ggml) if a.ggml else None
    parts = a.part or ["blocks", "families", "logits", "kl"]
    if "blocks" in parts:
        blocks.run(check, a.nha, library, a.files, a.work)
    if a.llama and "families" in parts:
        import families

        families.run(check, a.nha, a.llama, a.golden, a.work)
    if a.logits and ("logits" in parts or "kl" in parts):
        import models

        models.run(check, a, parts)
    print(f"{check.failed} failed" if check.failed else "all equal")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
