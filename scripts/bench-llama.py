"""The driver of scripts/bench-llama: runs nha and llama.cpp by turns and writes docs/results/llama.md.

A part is a function that returns Markdown; the file keeps the parts that are not run now. Both programs use the same number of
threads. Each figure is the best of three rounds, of two from 2048 tokens on, in which the contenders take turns, so that what else the machine
did does not decide. llama.cpp reads 8192 tokens and more once with each setting.
A step of ours at some depth is measured from a state that is filled, not read in; llama.cpp reads the tokens in.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import time


def rounds(tokens):
    return 3 if tokens < 2048 else 2


class Bench:
    def __init__(self, o):
        self.o = o
        self.threads = str(o.threads)

    def model(self, kind):
        return os.path.join(self.o.models, f"SmolLM2-135M-Instruct.{kind}.gguf")

    def nha(self, verb, kind, *args):
        """Rows of `nha bench verb`."""
        out = subprocess.run([self.o.nha, "bench", verb, "--model", self.model(kind), "--backend", "cpu", "--threads", self.threads, "--json", *map(str, args)],
                             check=True, stdout=subprocess.PIPE, text=True).stdout
        return [json.loads(line) for line in out.splitlines()]

    def llama(self, kind, *args, deep=False):
        """Rows of llama-bench with flash attention on and off; deep: it reads many tokens first, once."""
        rows = []
        for fa in "1", "0":
            out = subprocess.run([os.path.join(self.o.llama, "llama-bench"), "-m", self.model(kind), "-t", self.threads, "-fa", fa, "-r", "1" if deep else "2", "-o", "jsonl", *map(str, args)],
                                 check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
            rows += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return rows

    # --- parts

    def decode(self):
        lines = ["| weights | depth | nha tokens/s | llama.cpp | ratio | share of the read bandwidth |", "|---|---|---|---|---|---|"]
        depths = [0, 128, 2048, 8192] + ([32768] if self.o.deep else [])
        for kind in self.o.types:
            ours, theirs, share = {}, {}, {}
            for i in range(rounds(0)):
                for d in (d for d in depths if i < rounds(d)):
                    for r in self.nha("decode", kind, "--depth", d):
                        if r["tokens_per_s"] > ours.get(d, 0):
                            ours[d], share[d] = r["tokens_per_s"], r.get("bandwidth_share", 0)
                    if d >= 8192 and d in theirs:
                        continue  # a minute of reading
                    for r in self.llama(kind, "-p", 0, "-n", 32 if d < 8192 else 8, "-d", d, deep=d >= 2048):
                        theirs[d] = max(theirs.get(d, 0), r["avg_ts"])
            for d in depths:
                lines.append(f"| {kind} | {d} | {ours[d]:.1f} | {theirs[d]:.1f} | {ours[d] / theirs[d]:.2f} | {share[d]:.2f} |")
        return lines

    def prefill(self):
        lines = ["| weights | tokens | nha tokens/s | llama.cpp | ratio |", "|---|---|---|---|---|"]
        for kind in self.o.types:
            ours, theirs = {}, {}
            for i in range(rounds(0)):
                for n in (n for n in (128, 512, 2048) if i < rounds(n)):
                    for r in self.nha("prefill", kind, "--tokens", n):
                        ours[n] = max(ours.get(n, 0), r["tokens_per_s"])
                    for r in self.llama(kind, "-p", n, "-n", 0, deep=n >= 2048):
                        theirs[n] = max(theirs.get(n, 0), r["avg_ts"])
            for n in ours:
                lines.append(f"| {kind} | {n} | {ours[n]:.0f} | {theirs[n]:.0f} | {ours[n] / theirs[n]:.2f} |")
        return lines

    def flat(self):
        depths = 128, 2048, 8192, 32768, 131072
        lines = ["| weights | " + " | ".join(f"depth {d}" for d in depths) + " | 131072 against 128 |", "|---|" + "---|" * (len(depths) + 1)]
        for kind in self.o.types:
            best = {}
            for _ in range(5):  # of equal times, the rounds must show it
                for d in depths:
                    for r in self.nha("decode", kind, "--windows", 64, "--depth", d, "--seconds", 0.5):
                        best[d] = min(best.get(d, 1e9), r["step_ms"])
            lines.append(f"| {kind} | " + " | ".join(f"{best[d]:.2f} ms" for d in depths) + f" | {best[131072] / best[128]:.3f} |")
        return lines

    def start(self):
        lines = ["| weights | | load to first token, s | resident at 2K, MiB | at 32K, windows 64 |", "|---|---|---|---|---|"]
        for kind in self.o.types:
            first = min(self.first_token(kind) for _ in range(3))
            ours = self.nha("decode", kind, "--depth", 2048)[0]["resident_bytes"], self.nha("decode", kind, "--windows", 64, "--depth", 32768)[0]["resident_bytes"]
            lines.append(f"| {kind} | nha | {first:.2f} | {ours[0] / 2**20:.0f} | {ours[1] / 2**20:.0f} |")
            theirs = [self.peak(kind, d) for d in (2048, 4096)]
            deep = theirs[0] + (theirs[1] - theirs[0]) / 2048 * (32768 - 2048)
            lines.append(f"| {kind} | llama.cpp | | {theirs[0] / 2**20:.0f} | {deep / 2**20:.0f} (full attention, by its growth from 2K to 4K) |")
        return lines

    def first_token(self, kind):
        t = time.perf_counter()
        subprocess.run([self.o.nha, "generate", self.model(kind), "--threads", self.threads, "--prompt", "The capital of France is", "--max-new-tokens", "1"],
                       check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - t

    def peak(self, kind, depth):
        """Peak resident memory of llama-bench at a depth of so many tokens."""
        command = [os.path.join(self.o.llama, "llama-bench"), "-m", self.model(kind), "-t", self.threads, "-fa", "1", "-p", "0", "-n", "1", "-r", "1", "-d", str(depth), "--no-warmup"]
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(p.pid, 0)
        return usage.ru_maxrss * 1024


PARTS = {
    "decode": "Decoding, full attention in every layer",
    "prefill": "Reading a prompt, full attention",
    "flat": "Decoding with every layer's window at 64 (quality aside)",
    "start": "Start and memory",
}


def facts():
    with open("/proc/cpuinfo") as f:
        text = f.read()
    name = re.search(r"model name\s*: (.*)", text).group(1)
    flags = re.search(r"flags\s*: (.*)", text).group(1).split()
    best = "AVX-512 with VNNI" if "avx512_vnni" in flags else "AVX-512" if "avx512f" in flags else "AVX2"
    return f"{name}, {os.cpu_count()} processors, {best}"


def main():
    a = argparse.ArgumentParser()
    for name in "nha", "llama", "models":
        a.add_argument("--" + name, required=True)
    a.add_argument("--types", type=lambda s: s.split(","), default=["Q4_0", "Q4_1", "Q8_0", "F16"])
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--deep", action="store_true")
    a.add_argument("--out", default="docs/results/llama.md")
    a.add_argument("parts", nargs="*", choices=[*PARTS, []])
    o = a.parse_args()
    b = Bench(o)
    old = {}
    if os.path.exists(o.out):
        with open(o.out) as f:
            for block in f.read().split("\n## ")[1:]:
                title, _, body = block.partition("\n")
                old[title] = body.strip("\n").splitlines()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    for part in o.parts or PARTS:
        print(f"bench-llama: {part}", file=sys.stderr)
        lines = getattr(b, part)()
        stamp = f"{datetime.date.today()}, commit {commit}, {o.threads} threads, `scripts/bench-llama {' '.join(['--deep'] * o.deep + [part])}`"
        old[PARTS[part]] = [stamp, "", *lines]
    head = ["# Pretrained models on a processor, beside llama.cpp", "",
            f"SmolLM2-135M-Instruct; {facts()}. llama.cpp built natively from llama-cpp-python's source (scripts/llama-peer); the better of its two settings of",
            "flash attention counts. The best of three rounds by turns, of two from 2048 tokens on. Our steps start from a state that is filled, llama.cpp's from tokens that it has read."]
    body = []
    for title in PARTS.values():
        if title in old:
            body += ["", "## " + title, *old[title]]
    with open(o.out + ".tmp", "w") as f:
        f.write("\n".join(head + body) + "\n")
    os.replace(o.out + ".tmp", o.out)


if __name__ == "__main__":
    main()
