"""scripts/eval-truth/run speed: seconds for rows of LAMBADA, nha's whole command beside lm_eval's scoring alone, both in float32.

lm_eval is given every batch size of --batches in turn for the first --probe rows; the best of them answers all rows. What counts is the time of its
loglikelihood call, tokenising included. nha's time is that of the command from its start to its end, loading included, once before and once behind.
"""

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import time

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--nha", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--model", required=True, help="a directory or GGUF file")
    p.add_argument("--lambada", required=True)
    p.add_argument("--rows", type=int, default=200)
    p.add_argument("--batches", default="1,4,8,16,32")
    p.add_argument("--probe", type=int, default=100)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    if args.model.endswith(".gguf"):
        directory = f"{args.work}/model"
        subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "from_gguf.py"), args.model, directory], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        args.model = directory
    with open(args.lambada) as f:
        texts = [json.loads(line)["text"] for line in f][:args.rows]
    pairs = [(" ".join(t.split(" ")[:-1]), " " + t.split(" ")[-1]) for t in texts]

    def nha(rows):
        started, cpu = time.time(), os.times().children_user
        out = subprocess.run([args.nha, "eval", args.model, "--tasks", "lambada_openai", "--data", args.lambada, "--limit", str(rows), "--no-resume", "--json",
                              "--backend", "cpu", "--threads", str(args.threads), "--samples", f"{args.work}/samples.jsonl"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return time.time() - started, os.times().children_user - cpu, {json.loads(l)["metric"]: json.loads(l)["value"] for l in out.splitlines()}

    print(f"{args.rows} rows, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    seconds, cpu, values = nha(args.rows)
    print(f"nha: {seconds:.1f} s ({cpu:.1f} s of processor), {values}", flush=True)
    lm = HFLM(pretrained=args.model, dtype="float32", device="cpu")
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]

    def harness(batch, some):
        lm.batch_size_per_gpu = batch
        started, cpu = time.time(), os.times().user
        answers = lm.loglikelihood(some, disable_tqdm=True)
        return time.time() - started, os.times().user - cpu, answers

    harness(1, requests[:2])  # warms up
    took = {}
    for batch in map(int, args.batches.split(",")):
        took[batch], _, _ = harness(batch, requests[:args.probe])
        print(f"lm_eval, batch {batch}: {took[batch]:.1f} s for {min(args.probe, args.rows)} rows", flush=True)
    best = min(took, key=took.get)
    theirs, theirs_cpu, answers = harness(best, requests)
    with open(f"{args.work}/samples.jsonl") as f:
        ours = [json.loads(line)["resps"][0] for line in f]
    delta = max(abs(a[0] - b[0]) for a, b in zip(ours, answers))
    differ = sum(bool(a[1]) != bool(b[1]) for a, b in zip(ours, answers))
    mean = sum(a[0] for a in answers) / len(answers)
    print(f"lm_eval, batch {best}, the best: {theirs:.1f} s ({theirs_cpu:.1f} s of processor), perplexity {math.exp(-mean):.4f}, acc {sum(a[1] for a in answers) / len(answers):.4f}; "
          f"log-likelihoods differ by at most {delta:.1e}, {differ} decisions", flush=True)
    again, cpu_again, _ = nha(args.rows)
    print(f"nha again: {again:.1f} s ({cpu_again:.1f} s of processor); lm_eval over nha's better: {theirs / min(seconds, again):.2f}, "
          f"of processor time {theirs_cpu / min(cpu, cpu_again):.2f}")


main()
