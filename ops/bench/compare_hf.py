"""Stellate beside Hugging Face transformers on PyTorch: one machine, one run, the same weights, the same token ids.

Writes Llama-3.2-1B's shape with seeded random weights (bf16 safetensors) once, checks on a short prompt that both engines
compute the same logits, and then measures in turns, every engine and length in a process of its own: `exact` prefill,
greedy decoding after it (no speculation), and memory. Both in bf16 on all cores.

  python -m venv venv && venv/bin/pip install -r ops/bench/requirements.txt
  cargo build --release
  venv/bin/python ops/bench/compare_hf.py --json hf.json

transformers is run as fast as we know how: SDPA attention, oneDNN's bf16 kernels (AMX where the CPU has it), inference mode,
no logits but those of the last token, weights copied out of the mapped file, a cache that is never reallocated, and an
allocator that keeps what it has. The --hf-* flags undo each of these.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import engines
from engines import Stellate, Trouble, best, say, table

CHECK_CONTEXT_TOKENS, CHECK_QUESTION_TOKENS = 256, 16
# Two bf16 engines that round in other places differ by 1 to 2 % of the logits' deviation; another model by 140 %.
MAX_DIFFERENCE = 0.1
PREFILL_TARGETS = {2_048: 1.25, 8_192: 1.8, 16_384: 2.2}
DECODE_TARGETS = {16_384: 3.0}
MEMORY_TARGETS = {16_384: 0.8}
# glibc gives every large block back to the system and takes it anew, zeroed: a fifth to a third of a prefill's time.
KEEP_MEMORY = ":".join(
    f"glibc.malloc.{name}"
    for name in ("mmap_max=0", "trim_threshold=1000000000000", "top_pad=67108864", "hugetlb=1")
)
MIB, GIB = 2**20, 2**30


def arguments():
    parser = engines.common_arguments(__doc__)
    parser.add_argument("--tokens", type=engines.lengths, metavar="N,…", help="of the contexts; default: 2048,8192,16384")
    parser.add_argument("--hf-cache", choices=["filled", "dynamic"], default="filled", help="default: %(default)s")
    parser.add_argument("--hf-weights", choices=["copied", "mapped"], default="copied", help="default: %(default)s")
    parser.add_argument("--hf-malloc", choices=["keep", "plain"], default="keep", help="default: %(default)s")
    parser.add_argument("--hf-chunk-tokens", type=int, default=0, metavar="N", help="default: the whole context at once")
    args = parser.parse_args()
    args.repeat = args.repeat or (1 if args.quick else 3)
    args.answer_tokens = args.answer_tokens or (9 if args.quick else 33)
    args.tokens = args.tokens or ([512, 1_024] if args.quick else sorted(PREFILL_TARGETS))
    if args.answer_tokens < 2:
        parser.error("--answer-tokens: at least 2 are needed for a time between two")
    return args


class HuggingFace:
    """transformers, in a process for every measurement."""

    def __init__(self, args, model, ids):
        self.args, self.model, self.ids = args, model, ids
        self.env = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        self.env.update(OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
        if args.hf_malloc == "keep":
            self.env["GLIBC_TUNABLES"] = KEEP_MEMORY

    def worker(self, *arguments, ids=None):
        args, script = self.args, Path(__file__).with_name("hf_worker.py")
        command = [sys.executable, script, "--model", self.model, "--ids", ids or self.ids, "--threads", args.threads]
        command += ["--cache", args.hf_cache, "--weights", args.hf_weights, "--chunk-tokens", args.hf_chunk_tokens]
        output, peak = engines.run([str(part) for part in [*command, *arguments]], "transformers", self.env)
        return json.loads(output.splitlines()[-1]), peak

    def measure(self, tokens):
        facts, peak = self.worker("--tokens", tokens, "--answer-tokens", self.args.answer_tokens)
        work = facts["work_mib"]["peak"] * MIB if facts["peak_is_own"] else peak
        return facts, sample(tokens, facts["encode_s"], facts["token_s"], work, peak, facts["answer_ids"])


def sample(tokens, encode_s, token_s, work_bytes, life_bytes, answer_ids):
    """One measurement of either engine."""
    return {
        "prefill_tokens_per_s": tokens / encode_s,
        "token_ms": 1e3 * token_s,
        "work_bytes": work_bytes,
        "life_bytes": life_bytes,
        "answer_ids": answer_ids,
    }


def measure_stellate(stellate, model, ids, tokens, answer_tokens):
    report, peak = stellate.bench(model, ids, [tokens], answer_tokens)
    case = report["measurements"][0]
    work = case["peak_resident_bytes"] if case["peak_is_own"] else peak
    return report, sample(tokens, case["encode_s"]["best"], case["token_s"]["best"], work, peak, case["answer_ids"])


def check_same_model(stellate, hugging_face, model, ids, folder):
    """Logits of a short prompt by both engines: how far apart they are."""
    import numpy

    say("checking that both engines compute the same model")
    count = CHECK_CONTEXT_TOKENS + CHECK_QUESTION_TOKENS
    short, out = folder / "check-ids.json", folder / "check-logits.npy"
    short.write_text(json.dumps(ids[:count]))
    hugging_face.worker("--logits", out, "--rows", CHECK_QUESTION_TOKENS, ids=short)
    theirs = numpy.load(out)
    ours = stellate.logits(model, ids[:CHECK_CONTEXT_TOKENS], ids[CHECK_CONTEXT_TOKENS:count])
    difference = float(numpy.sqrt(numpy.mean((ours - theirs) ** 2)) / theirs.std())
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    if not difference < MAX_DIFFERENCE:
        raise Trouble(f"the engines do not compute the same: their logits differ by {difference:.1%} of the deviation")
    say(f"logits differ by {difference:.2%} of their deviation, {same} of {len(ours)} greedy tokens are the same")
    return {"rows": len(ours), "same_greedy_tokens": same, "rms_difference_of_deviation": difference}


def summary(samples):
    """Best and median of each figure of one engine at one length."""
    numbers = {key: [s[key] for s in samples] for key in samples[0] if key != "answer_ids"}
    known = {key: values for key, values in numbers.items() if None not in values}
    result = {key: best(values, higher=key == "prefill_tokens_per_s") for key, values in known.items()}
    return {**result, "answer_ids": samples[-1]["answer_ids"]}


def row(what, tokens, theirs, ours, show, ratio, target=None, at_most=False):
    reached = target and (ratio <= target if at_most else ratio >= target)
    goal = f"{'≤' if at_most else '≥'} {target} ×" if target else ""
    cells = [what, f"{tokens:,}", show(theirs), show(ours), f"{ratio:.2f} ×", goal]
    verdict = None if not target else ("reached" if reached else "missed")
    facts = {"what": what, "tokens": tokens, "hugging_face": theirs, "stellate": ours, "ratio": ratio}
    return [*cells, verdict or ""], {**facts, "target": target, "verdict": verdict}


def compare_figures(results):
    """The rows of the table, and the same for programs."""
    rows = []
    kinds = [
        ("prefill, tokens/s", "prefill_tokens_per_s", lambda x: f"{x:,.0f}", PREFILL_TARGETS),
        ("decode, ms/token", "token_ms", lambda x: f"{x:.1f}", DECODE_TARGETS),
        ("peak memory at work, GiB", "work_bytes", lambda x: f"{x / GIB:.2f}", MEMORY_TARGETS),
        ("peak memory with loading, GiB", "life_bytes", lambda x: f"{x / GIB:.2f}", {}),
    ]
    for what, key, show, targets in kinds:
        for tokens, both in results.items():
            theirs, ours = both["hugging_face"].get(key), both["stellate"].get(key)
            if not theirs or not ours:
                continue
            theirs, ours = theirs["best"], ours["best"]
            ratio = theirs / ours if key == "token_ms" else ours / theirs
            rows.append(row(what, tokens, theirs, ours, show, ratio, targets.get(tokens), key.endswith("bytes")))
    return [cells for cells, _ in rows], [facts for _, facts in rows]


def compare():
    args = arguments()
    missing = [name for name in ("numpy", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        wanted = Path(__file__).with_name("requirements.txt")
        raise Trouble(f"{', '.join(missing)} not found by {sys.executable}: pip install -r {wanted}")
    import llama_1b

    stellate, place = Stellate(args), engines.machine()
    engines.warn_if_busy(place)
    folder = Path(args.data).resolve()
    model = folder / f"llama-1b-{args.seed}"
    llama_1b.write_checkpoint(model, args.seed, say)
    ids = llama_1b.token_ids(max(args.tokens) + CHECK_CONTEXT_TOKENS, args.seed)
    ids_file = folder / "ids.json"
    ids_file.write_text(json.dumps(ids))
    hugging_face = HuggingFace(args, model, ids_file)
    same = check_same_model(stellate, hugging_face, model, ids, folder)
    samples = {tokens: {"hugging_face": [], "stellate": []} for tokens in args.tokens}
    for turn in range(args.repeat):
        for tokens in args.tokens:
            hf_facts, taken = hugging_face.measure(tokens)
            samples[tokens]["hugging_face"].append(taken)
            tell(turn, args, tokens, "transformers", taken)
            bench, taken = measure_stellate(stellate, model, ids_file, tokens, args.answer_tokens)
            samples[tokens]["stellate"].append(taken)
            tell(turn, args, tokens, "stellate", taken)
    results = {n: {engine: summary(taken) for engine, taken in both.items()} for n, both in samples.items()}
    cells, figures = compare_figures(results)
    hf_settings = {name: getattr(args, name) for name in ("hf_cache", "hf_weights", "hf_malloc", "hf_chunk_tokens")}
    report = {
        "machine": place,
        "threads": args.threads,
        "repeat": args.repeat,
        "answer_tokens": args.answer_tokens,
        "hugging_face": {**hf_facts["versions"], "amx": hf_facts["amx"], "imported_mib": hf_facts["imported_mib"], **hf_settings},
        "stellate": {key: bench[key] for key in ("machine", "model", "node")},
        "same_model": same,
        "figures": figures,
        "results": results,
    }
    engines.finish(args, report, text_of(report, cells))


def tell(turn, args, tokens, engine, taken):
    memory = f", {taken['work_bytes'] / GIB:.2f} GiB" if taken["work_bytes"] else ""
    speed = f"{taken['prefill_tokens_per_s']:,.0f} tokens/s, then {taken['token_ms']:.1f} ms a token"
    say(f"round {turn + 1}/{args.repeat}, {tokens:,} tokens, {engine}: {speed}{memory}")


def text_of(report, cells):
    place, theirs, ours = report["machine"], report["hugging_face"], report["stellate"]["machine"]
    same = report["same_model"]
    amx = {True: "with AMX", False: "without AMX", None: "AMX unknown"}[theirs["amx"]]
    imported = theirs["imported_mib"]["peak"] / 1024
    lines = [
        *engines.where(place),
        f"theirs:  transformers {theirs['transformers']}, torch {theirs['torch']}, bf16, SDPA, {amx}; "
        f"cache {theirs['hf_cache']}, weights {theirs['hf_weights']}, malloc {theirs['hf_malloc']}",
        f"ours:    stellate {ours['version']}, {ours['backend']}, bf16 weights and KV, exact, no speculation",
        f"run:     {report['threads']} threads each, in turns, best of {report['repeat']}; decode: mean of "
        f"{report['answer_tokens'] - 1} steps after the context",
        f"check:   logits differ by {same['rms_difference_of_deviation']:.2%} of their deviation, "
        f"{same['same_greedy_tokens']} of {same['rows']} greedy tokens are the same",
        "",
        table(["", "context", "transformers", "Stellate", "ratio", "target", ""], cells),
        "",
        f"Of transformers' memory {imported:.2f} GiB are the imported libraries, CUDA's among them in PyPI's torch. "
        "\"At work\" is counted from the end of loading and warming up.",
    ]
    if theirs["hf_weights"] == "copied":
        lines.append("With loading, transformers has the mapped file and its copy at once; --hf-weights mapped has not.")
    return "\n".join(lines)


if __name__ == "__main__":
    engines.main(compare)
