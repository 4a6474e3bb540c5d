"""scripts/eval-truth/run speed: seconds for rows of LAMBADA, nha's whole command beside lm_eval's scoring alone, both in float32.

lm_eval is given every batch size of --batches in turn, on its own loaded model; what counts is the time of its loglikelihood call, tokenising
included. nha's time is that of the command from its start to its end, loading included.
"""

import argparse
import json
import logging
import os
import subprocess
import time

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nha", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--lambada", required=True)
    p.add_argument("--rows", type=int, default=200)
    p.add_argument("--batches", default="1,8,32")
    args = p.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    with open(args.lambada) as f:
        texts = [json.loads(line)["text"] for line in f][:args.rows]
    pairs = [(" ".join(t.split(" ")[:-1]), " " + t.split(" ")[-1]) for t in texts]

    def nha(rows):
        started = time.time()
        out = subprocess.run([args.nha, "eval", args.model, "--tasks", "lambada_openai", "--data", args.lambada, "--limit", str(rows), "--no-resume", "--json",
                              "--backend", "cpu"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return time.time() - started, {json.loads(l)["metric"]: json.loads(l)["value"] for l in out.splitlines()}

    print(f"{args.rows} rows, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    seconds, values = nha(args.rows)
    print(f"nha: {seconds:.1f} s, {values}", flush=True)
    best = None
    for batch in args.batches.split(","):
        lm = HFLM(pretrained=args.model, dtype="float32", device="cpu", batch_size=int(batch))
        requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
        lm.loglikelihood(requests[:2], disable_tqdm=True)
        started = time.time()
        answers = lm.loglikelihood(requests, disable_tqdm=True)
        took = time.time() - started
        best = min(best or took, took)
        print(f"lm_eval, batch {batch}: {took:.1f} s, acc {sum(a[1] for a in answers) / len(answers):.4f}", flush=True)
        del lm
    again, _ = nha(args.rows)
    print(f"nha again: {again:.1f} s; lm_eval's best over nha's better: {best / min(seconds, again):.2f}")


main()
