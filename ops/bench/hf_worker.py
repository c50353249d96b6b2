"""One measurement of Hugging Face transformers, in a process of its own: started by `compare_hf.py`, prints one JSON line.

A context is run through the decoder layers once (no logits: nobody reads them), then one question token and greedy
steps follow, each with the logits of its last token only. That is what `stellate bench` does too.
"""

import argparse
import json
import re
import sys
import time

# Shorter than any context that is measured; makes oneDNN's kernels and starts its threads.
WARM_UP_TOKENS = 256


def memory_mib():
    """Of this process, as Linux tells it: highest and present resident memory, of which anonymous and of files."""
    status = open("/proc/self/status").read()
    return {
        name: int(re.search(rf"^{key}:\s+(\d+) kB", status, re.M).group(1)) / 1024
        for name, key in (("peak", "VmHWM"), ("now", "VmRSS"), ("anonymous", "RssAnon"), ("files", "RssFile"))
    }


def reset_peak():
    """Forgets the highest resident memory so far (proc(5), clear_refs); tells whether it could."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return True
    except OSError:
        return False


def growing_cache(transformers, torch, layers, capacity):
    """A cache that is allocated once and whose layers hand out the part that is filled.

    transformers' own caches are slower here: `DynamicCache` copies all keys and values for every token, `StaticCache`
    makes attention read its whole capacity under a mask.
    """
    layer_class = transformers.cache_utils.DynamicLayer

    class FilledLayer(layer_class):
        def update(self, key, value, *_, **__):
            filled = self.filled if self.is_initialized else 0
            if not self.is_initialized:
                self.lazy_initialization(key, value)
                batch, heads, _, width = key.shape
                self.room = [torch.empty(batch, heads, capacity, width, dtype=key.dtype) for _ in range(2)]
            self.filled = filled + key.shape[-2]
            for room, new in zip(self.room, (key, value)):
                room[:, :, filled : self.filled] = new
            self.keys, self.values = (room[:, :, : self.filled] for room in self.room)
            return self.keys, self.values

    cache = transformers.DynamicCache()
    cache.layers = [FilledLayer() for _ in range(layers)]
    return cache


class Engine:
    """The model, loaded, and the kind of cache it is run with."""

    def __init__(self, args):
        import torch
        import transformers

        self.torch, self.transformers, self.args = torch, transformers, args
        torch.set_num_threads(args.threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.imported = memory_mib()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
        ).eval()
        if args.weights == "copied":
            for weight in self.model.parameters():
                weight.data = weight.data.clone()

    def cache(self, capacity):
        if self.args.cache == "dynamic":
            return self.transformers.DynamicCache(config=self.model.config)
        return growing_cache(self.transformers, self.torch, self.model.config.num_hidden_layers, capacity)

    def encode(self, ids, cache):
        """Runs a context; gives the seconds it took."""
        chunk = self.args.chunk_tokens or len(ids)
        start = time.perf_counter()
        for first in range(0, len(ids), chunk):
            part = self.torch.tensor([ids[first : first + chunk]])
            self.model.model(input_ids=part, past_key_values=cache, use_cache=True)
        return time.perf_counter() - start

    def answer(self, question, count, cache):
        """Greedy: `count` tokens after the question, and the mean seconds between two of them."""
        ids, logits = [], self.logits([question], cache)
        ids.append(int(logits.argmax()))
        start = time.perf_counter()
        for _ in range(count - 1):
            ids.append(int(self.logits([ids[-1:]], cache).argmax()))
        return ids, (time.perf_counter() - start) / (count - 1)

    def logits(self, rows, cache):
        out = self.model(
            input_ids=self.torch.tensor(rows), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[0, -1]


def measure(engine, ids, args):
    warm = engine.cache(WARM_UP_TOKENS + 4)
    engine.encode(ids[:WARM_UP_TOKENS], warm)
    engine.answer(ids[:1], 3, warm)
    del warm
    loaded = memory_mib()
    peak_is_own = reset_peak()
    cache = engine.cache(args.tokens + 1 + args.answer_tokens)
    encode_s = engine.encode(ids[: args.tokens], cache)
    answer, token_s = engine.answer(ids[args.tokens : args.tokens + 1], args.answer_tokens, cache)
    return {
        "encode_s": encode_s,
        "token_s": token_s,
        "answer_ids": answer,
        "imported_mib": engine.imported,
        "loaded_mib": loaded,
        "work_mib": memory_mib(),
        "peak_is_own": peak_is_own,
    }


def check(engine, ids, args):
    """Logits of the last tokens of `ids`, written as float32, to be compared with another engine's."""
    import numpy

    out = engine.model(input_ids=engine.torch.tensor([ids]), logits_to_keep=args.rows)
    numpy.save(args.logits, out.logits[0].float().numpy())
    return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ids", required=True, help="JSON list of token ids")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=0, help="of the context")
    parser.add_argument("--answer-tokens", type=int, default=2)
    parser.add_argument("--cache", choices=["filled", "dynamic"], default="filled")
    parser.add_argument("--weights", choices=["copied", "mapped"], default="copied")
    parser.add_argument("--chunk-tokens", type=int, default=0, help="0: the whole context at once")
    parser.add_argument("--logits", help="write logits of the last --rows ids to this .npy file, measure nothing")
    parser.add_argument("--rows", type=int, default=1)
    args = parser.parse_args()
    ids = json.load(open(args.ids))
    if len(ids) <= args.tokens:
        parser.error(f"--ids has {len(ids)} tokens: --tokens and one question token take {args.tokens + 1}")
    engine = Engine(args)
    with engine.torch.inference_mode():
        result = check(engine, ids, args) if args.logits else measure(engine, ids, args)
    versions = {"torch": engine.torch.__version__, "transformers": engine.transformers.__version__}
    # An old torch lacks the question, and then nobody can tell.
    amx = getattr(engine.torch.cpu, "_is_amx_tile_supported", lambda: None)()
    print(json.dumps({**result, "versions": versions, "amx": amx}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
