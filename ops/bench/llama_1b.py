"""Llama-3.2-1B's shape with seeded random weights: a Hugging Face directory in bf16, and token ids.

Needs numpy alone. The same seed gives the same numbers on every machine, and every engine that is compared is given the
same ones. No tokenizer: what is compared is fed token ids.
"""

import json
import struct
from pathlib import Path

import numpy as np

VOCAB = 128_256
HIDDEN = 2_048
INTERMEDIATE = 8_192
LAYERS = 16
HEADS = 32
KV_HEADS = 8
HEAD_DIM = 64
MAX_POSITIONS = 131_072
NORM_EPS = 1e-5
ROPE_THETA = 500_000.0
ROPE_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8_192,
    "rope_type": "llama3",
}

# Rows made at a time: bounds memory, and the numbers do not depend on it.
CHUNK_ROWS = 8_192
FORMAT = "stellate-bench-llama-1b-1"


def config():
    """The published model's `config.json`, with nothing that a run without text needs."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": False,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": NORM_EPS,
        "rope_scaling": ROPE_SCALING,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def tensors():
    """`(name, shape, deviation)` of every weight in the Hugging Face naming; a deviation of 0 means all ones.

    Projections keep the size of what they are given, those that end a branch are smaller: activations then stay near 1
    through all layers and logits have a deviation near 1, as a trained model's would.
    """
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN), 0.02
    keep, keep_wide = HIDDEN**-0.5, INTERMEDIATE**-0.5
    end = (2 * LAYERS) ** -0.5
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,), 0
        yield prefix + "self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN), keep
        yield prefix + "self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN), keep
        yield prefix + "self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN), keep
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM), keep * end
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,), 0
        yield prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN), keep
        yield prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN), keep
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE), keep_wide * end
    yield "model.norm.weight", (HIDDEN,), 0


def bf16_bits(values):
    """float32 rounded to bf16, to nearest and ties to even, as its 16 bits."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def chunks(index, shape, deviation, seed):
    """The bf16 bits of tensor number `index`, in runs of whole rows."""
    if not deviation:
        yield bf16_bits(np.ones(shape, np.float32))
        return
    # A stream per tensor: contents do not depend on the order of making them.
    random = np.random.default_rng([seed, index])
    rows, columns = shape
    for first in range(0, rows, CHUNK_ROWS):
        part = random.standard_normal((min(CHUNK_ROWS, rows - first), columns), np.float32)
        part *= np.float32(deviation)
        yield bf16_bits(part)


def token_ids(count, seed):
    """`count` random ids, none of them special."""
    return np.random.default_rng([seed, 1_000_000]).integers(0, 128_000, count).tolist()


def write_checkpoint(folder, seed, say):
    """Writes the Hugging Face directory unless it is there already, whole and of the same seed."""
    folder = Path(folder)
    stamp, wanted = folder / "made_with.json", {"format": FORMAT, "seed": seed}
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    say(f"writing random weights to {folder} (2.5 GB)")
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (_, shape, deviation) in enumerate(tensors()):
            for part in chunks(index, shape, deviation, seed):
                file.write(part.tobytes())
    (folder / "config.json").write_text(json.dumps(config(), indent=2))
    # Last: without it the directory is not whole.
    stamp.write_text(json.dumps(wanted))
